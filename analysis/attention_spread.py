r"""Over how much of a history does attention spread?

.. math:: H / \ln n = -\sum_j w_j \ln w_j \,/ \ln n

of a softmax over n events: 1 where all weigh the same, 0 where one has all the weight. Attention
that never leaves 1 has learned nothing, whatever the history's length.

Shapes: S candidates; in a block B requests, L events, C candidates, Q of the events, E heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from analysis.scores import block_scores
from data.batch import RankingBatch
from modules.crossing.history import HistoryEncoder
from modules.ranker import LifelongRanker, RankerOutput

QUERIES = 64
"""Events of a history whose self-attention is looked at, evenly spaced: all by all would be the
square of the history."""
LENGTHS = 16
"""Bins of histories, [2^i, 2^(i + 1)) events; the last has all that are longer."""


class AttentionSpread:
    """Sums over batches, on the device.

    * ``target``: the candidate's attention over its **whole** history. Where a search chooses K
      events it is what their score would spread over all.
    * ``self``: that of the events of a history over each other, mean over heads, where the model
      has it.

    Histories of fewer than two events are left out: nothing can spread there. A model that does not
    attend by scores has neither.
    """

    def __init__(self, ranker: LifelongRanker, device: torch.device) -> None:
        self._ranker = ranker
        self._sums = torch.zeros(2, LENGTHS, 2, dtype=torch.float64, device=device)
        """Of target and self, for each length: the spread, and how many histories it is of."""
        self._scores = ranker.config.pooling == "attention"
        self._hook = None
        if ranker.encoder is not None:
            self._hook = ranker.encoder.register_forward_hook(self._of_encoder)

    @torch.no_grad()
    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch. Collective where the tables are sharded."""
        for block, scores_BCL in block_scores(self._ranker, batch) if self._scores else ():
            real_BC = block.candidates < len(batch.request_of)
            self._add(0, scores_BCL, block.row_mask[:, None], real_BC)

    @torch.no_grad()
    def _of_encoder(
        self, encoder: HistoryEncoder, args: tuple[Tensor, Tensor, Tensor], _: Tensor
    ) -> None:
        events, valid, targets = args
        scores_BCL = encoder.target_scores(targets, encoder.encode(events, valid))
        real_BC = targets.any(dim=2)  # the block's padding is zeros
        self._add(0, scores_BCL, valid[:, None], real_BC)
        queries_BELa, keys_BELa, _ = encoder.project(events, valid)
        every = slice(None, None, max(1, events.shape[1] // QUERIES))
        sees_BQL = (
            valid[:, None] & encoder.mask(valid)[:, 0].expand(-1, valid.shape[1], -1)[:, every]
        )
        for head in range(encoder.heads):
            scores_BQL = queries_BELa[:, head, every] @ keys_BELa[:, head].mT
            self._add(1, scores_BQL / keys_BELa.shape[3] ** 0.5, sees_BQL, valid[:, every])

    def _add(self, of: int, scores: Tensor, sees: Tensor, queries: Tensor) -> None:
        """(B, Q, L) scores, (B, Q or 1, L) which events a query sees, (B, Q) real queries."""
        count_BQ = sees.sum(dim=2).expand_as(queries)
        counted_BQ = queries & (count_BQ > 1)
        hidden = ~sees | ~counted_BQ[:, :, None]
        weights = scores.double().masked_fill(hidden, torch.finfo(torch.double).min).softmax(dim=2)
        spread_BQ = torch.special.entr(weights).sum(dim=2) / count_BQ.clamp(min=2).log()
        length_BQ = count_BQ.clamp(min=1).log2().long().clamp(max=LENGTHS - 1)
        counted = counted_BQ.double()
        sums = torch.stack([spread_BQ * counted, counted], dim=2).flatten(0, 1)
        self._sums[of].index_add_(0, length_BQ.flatten(), sums)

    def to_json(self) -> dict[str, Any]:
        """Means over all ranks, of all histories and by length: collective. None where there is no
        such attention, or no history of two events.
        """
        if self._hook is not None:
            self._hook.remove()
        dist.all_reduce(self._sums)
        return {name: _means(of) for name, of in zip(("target", "self"), self._sums, strict=True)}


def _means(sums: Tensor) -> dict[str, Any] | None:
    total, count = sums.sum(dim=0).tolist()
    if not count:
        return None
    return {
        "spread": total / count,
        "queries": int(count),
        "by_length": [
            {"events": 2**place, "spread": of_length / queries, "queries": int(queries)}
            for place, (of_length, queries) in enumerate(sums.tolist())
            if queries
        ],
    }
