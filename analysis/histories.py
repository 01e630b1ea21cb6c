"""Where a model's chosen events lie in a batch.

Shapes: S candidates, K chosen events, N events of all histories together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.batch import RankingBatch
from modules.jagged import first_rows
from modules.ranker import RankerOutput


def history_ends(batch: RankingBatch) -> tuple[Tensor, Tensor]:
    """(S,) each: one past the last row of a candidate's history, and the history's length."""
    device = batch.request_of.device
    lengths = batch.history_lengths
    ends = (first_rows(lengths) + lengths).to(device, non_blocking=True)
    return ends[batch.request_of], lengths.to(device, non_blocking=True)[batch.request_of]


def chosen_rows(output: RankerOutput, batch: RankingBatch) -> tuple[Tensor, Tensor]:
    """(S, K) rows of the jagged history that the search chose, 0 where there are fewer; and where
    there is one.
    """
    valid = output.recency > 0
    ends, _ = history_ends(batch)
    return (ends[:, None] - output.recency) * valid, valid


def matches(ids: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    """(S, K) bool: has the event of each row the id that its candidate wants?

    Args:
        ids: (N,) of the events.
        rows: (S, K).
        wanted: (S,) of the candidates.
    """
    if len(ids) == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    return ids[rows] == wanted[:, None]
