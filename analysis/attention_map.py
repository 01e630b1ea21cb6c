"""Where attention goes by category and recency: what the tables say, and what is measured.

Shapes: T target categories, B event categories, P ranks; S candidates.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from analysis.histories import history_ends
from analysis.scores import PLACE, field_mask
from data.batch import RankingBatch
from modules.ranker import LifelongRanker, RankerOutput


class AttentionByPlace:
    """Mean attention weight, full trained score and search included, of an event by its category
    and rank and the candidate's category; an event that the search left out counts as 0.
    """

    def __init__(
        self, categories: np.ndarray, num_categories: int, ranks: int, device: torch.device
    ) -> None:
        """``categories``: of candidates and of events alike."""
        self.ranks = ranks
        slot = torch.full((num_categories,), -1, dtype=torch.int64)
        slot[torch.from_numpy(categories)] = torch.arange(len(categories))
        self._slot = slot.to(device)
        shape = (len(categories), len(categories), ranks)
        self._weight = torch.zeros(shape, dtype=torch.float64, device=device)
        self._count = torch.zeros_like(self._weight)

    @torch.no_grad()
    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch."""
        rank = torch.arange(1, self.ranks + 1, device=self._slot.device)
        _, lengths = history_ends(batch)
        every = (rank * (rank <= lengths[:, None])).expand(len(lengths), -1)
        self._add(self._count, every, torch.ones_like(every, dtype=torch.float64), batch)
        near = output.recency * (output.recency <= self.ranks)
        self._add(self._weight, near, output.weights.double(), batch)

    def _add(self, sums: Tensor, recency: Tensor, values: Tensor, batch: RankingBatch) -> None:
        """Adds (S, n) values of the events of (S, n) recencies; 0 is none."""
        ends, _ = history_ends(batch)
        target = self._slot[batch.candidates["category"].values()]
        s, n = ((recency > 0) & (target >= 0)[:, None]).nonzero(as_tuple=True)
        rank = recency[s, n]
        event = self._slot[batch.history["category"].values()[ends[s] - rank]]
        known = event >= 0
        cell = (target[s] * sums.shape[1] + event) * sums.shape[2] + rank - 1
        sums += torch.bincount(cell[known], values[s, n][known], minlength=sums.numel()).view_as(
            sums
        )

    def mean(self, least: int) -> np.ndarray:
        """(T, B, P) over all ranks: collective. NaN with fewer than ``least`` events."""
        dist.all_reduce(self._weight)
        dist.all_reduce(self._count)
        mean = self._weight / self._count
        return torch.where(self._count >= max(least, 1), mean, torch.nan).cpu().numpy()


@torch.no_grad()
def place_attention(
    ranker: LifelongRanker, categories: np.ndarray, ranks: int, device: torch.device
) -> np.ndarray:
    """(T, B, P) what category and recency alone say: softmax over the whole (B, P) grid of the
    score with all other columns 0 (DARE, figures 8b and 8c, in the scale of training). Collective.
    """
    size = len(categories)
    category = torch.from_numpy(categories).to(device)
    rank = torch.arange(1, ranks + 1, device=device)
    grid = {"category": category.repeat_interleave(ranks), "recency": rank.repeat(size)}
    events = {f.name: torch.zeros_like(grid["category"]) for f in ranker.fields} | grid
    candidates = {f.name: torch.zeros_like(category) for f in ranker.fields}
    candidates["category"] = category
    keys, queries = ranker.tables.attend(events, candidates)
    mask = field_mask(ranker, PLACE, keys)
    scores = ranker.score(ranker.score.query(queries * mask), ranker.score.key(keys * mask))
    return scores.softmax(dim=1).view(size, size, ranks).cpu().numpy()


def correlations(learned: np.ndarray, truth: np.ndarray) -> tuple[float | None, float | None]:
    """Pearson's and Spearman's correlation over the cells that both know; None for too few."""
    known = np.isfinite(learned) & np.isfinite(truth)
    a, b = learned[known], truth[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None, None
    return (
        float(np.corrcoef(a, b)[0, 1]),
        float(np.corrcoef(mid_ranks(a), mid_ranks(b))[0, 1]),
    )


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) ranks from 1; equal values share the mean of theirs.

    >>> mid_ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]
