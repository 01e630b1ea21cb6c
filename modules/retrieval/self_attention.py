"""A user as what self-attention makes of the latest events; items by their table alone.

Shapes: B histories, T events (padded, the newest last), P places with a target, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.crossing.history import HistoryConfig, HistoryEncoder
from modules.retrieval.config import SelfAttentionConfig
from modules.retrieval.loss import Compared, Windows
from modules.retrieval.vectors import Histories, Vectors


class SelfAttention(nn.Module):
    r"""Causal self-attention over a history, scored against the item table (SASRec,
    https://arxiv.org/abs/1808.09781, sections 3.2 and 3.5).

    .. math:: s_{t, i} = \langle U_t, e_i \rangle

    U is that of :class:`~modules.crossing.history.HistoryEncoder`; :math:`U_t` has seen the events
    up to t. The vector of a user is that of the last event. The table serves events and candidates,
    and its gradient is sparse. A user without history has the vector zero.
    """

    def __init__(self, num_items: int, config: SelfAttentionConfig) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, config.width, sparse=True)
        # what comes out of the encoder has length sqrt(D): scores start with deviation 1
        nn.init.normal_(self.items.weight, std=config.width**-0.5)
        self.encoder = HistoryEncoder(
            config.width,
            HistoryConfig(
                heads=config.heads,
                hidden=config.hidden,
                places=config.history_length,
                causal=True,
            ),
        )

    def forward(self, batch: Windows) -> Compared:
        """A place for each event with a target."""
        rows_BTD = self.items(batch.events)
        queries = self.encoder.encode(rows_BTD, batch.valid)[batch.targets > 0]
        positives, negatives = self.items(batch.positives), self.items(batch.negatives)
        looked_up = (rows_BTD[batch.valid], positives, negatives)
        return Compared(queries, positives, negatives, rows=looked_up)

    @torch.no_grad()
    def encode(self, histories: Histories) -> Vectors:
        """Vectors of all users, by chunks, and the item table."""
        users = [self._of_last_event(events, valid) for events, valid in histories]
        return Vectors(torch.cat(users), self.items.weight)

    def _of_last_event(self, events: Tensor, valid: Tensor) -> Tensor:
        last_BD = self.encoder.encode(self.items(events), valid)[:, -1]
        return last_BD * valid[:, -1:]
