"""Where attention goes by category and recency: what the tables say, and what is measured.

Shapes: T target categories, B event categories, P bins of recency ranks; S candidates.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from analysis.histories import history_ends
from analysis.mutual_information import Axes
from analysis.scores import PLACE, field_mask
from data.batch import RankingBatch
from modules.ranker import LifelongRanker, RankerOutput


def map_groups(edges: np.ndarray, columns: int) -> np.ndarray:
    """(P,) which column of a map each bin of ranks falls into: columns of about equal width on a
    log scale, from the most recent event to the end of the history.

    >>> map_groups(np.array([1, 2, 3, 4, 8, 16, 32, 64, 129]), 4).tolist()
    [0, 0, 0, 1, 1, 2, 2, 3]
    """
    share = np.log(edges[:-1]) / np.log(max(edges[-1], 2))
    _, groups = np.unique((share * columns).astype(int), return_inverse=True)
    return groups


class AttentionByPlace:
    """Mean attention weight, full trained score and search included, of an event by its category,
    its rank and the candidate's category; an event that the search left out counts as 0.
    """

    def __init__(self, axes: Axes, device: torch.device) -> None:
        """``axes``: the categories and bins of ranks."""
        self._target, self._event, self._place = axes.slots(device)
        shape = (len(axes.targets), len(axes.events), len(axes.edges) - 1)
        self._weight = torch.zeros(shape, dtype=torch.float64, device=device)
        self._count = torch.zeros_like(self._weight)

    @torch.no_grad()
    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch."""
        _, lengths = history_ends(batch)
        candidate = torch.arange(len(lengths), device=lengths.device)
        of_pair = candidate.repeat_interleave(lengths)
        rank = torch.arange(len(of_pair), device=lengths.device)
        rank = rank - (lengths.cumsum(0) - lengths)[of_pair] + 1
        self._add(self._count, of_pair, rank, torch.ones_like(rank, dtype=torch.float64), batch)
        s, k = (output.recency > 0).nonzero(as_tuple=True)
        self._add(self._weight, s, output.recency[s, k], output.weights[s, k].double(), batch)

    def _add(
        self, sums: Tensor, candidate: Tensor, rank: Tensor, values: Tensor, batch: RankingBatch
    ) -> None:
        """Adds a value for each pair of a candidate and the event of a rank."""
        ends, _ = history_ends(batch)
        target = self._target[batch.candidates["category"].values()][candidate]
        event = self._event[batch.history["category"].values()[ends[candidate] - rank]]
        known = (target >= 0) & (event >= 0)
        cell = (target * sums.shape[1] + event) * sums.shape[2] + self._place[rank]
        sums += torch.bincount(cell[known], values[known], minlength=sums.numel()).view_as(sums)

    def mean(self, least: int) -> np.ndarray:
        """(T, B, P) over all ranks: collective. NaN with fewer than ``least`` events."""
        dist.all_reduce(self._weight)
        dist.all_reduce(self._count)
        mean = self._weight / self._count
        return torch.where(self._count >= max(least, 1), mean, torch.nan).cpu().numpy()


@torch.no_grad()
def place_attention(ranker: LifelongRanker, axes: Axes, device: torch.device) -> np.ndarray:
    """(T, B, P) what category and recency alone say: softmax over the grid of all categories and
    ranks of the score with all other columns 0, as a mean over the ranks of a bin (DARE, figures
    8b and 8c, in the scale of training). Collective.
    """
    ranks = int(axes.edges[-1]) - 1
    target, event = (torch.from_numpy(ids).to(device) for ids in (axes.targets, axes.events))
    rank = torch.arange(1, ranks + 1, device=device)
    grid = {"category": event.repeat_interleave(ranks), "recency": rank.repeat(len(event))}
    events = {f.name: torch.zeros_like(grid["category"]) for f in ranker.fields} | grid
    candidates = {f.name: torch.zeros_like(target) for f in ranker.fields}
    candidates["category"] = target
    keys, queries = ranker.tables.attend(events, candidates)
    mask = field_mask(ranker, PLACE, keys)
    scores = ranker.score(ranker.score.query(queries * mask), ranker.score.key(keys * mask))
    weights = scores.softmax(dim=1).view(len(target), len(event), ranks).cpu().numpy()
    return np.add.reduceat(weights, axes.edges[:-1] - 1, axis=2) / np.diff(axes.edges)


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
