"""Exact metrics of ranked lists: precision, recall and NDCG at K, averaged over users.

Shapes: n users with something to find, K the longest list, M metrics, B users of a chunk, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError
from modules.retrieval.vectors import Counts, Vectors
from trainer.metrics import CONFIDENCE, Interval
from trainer.topk.interactions import Bought

CUTOFFS = (5, 10, 20)
LONGEST = max(CUTOFFS)
METRICS = tuple(f"{name}@{k}" for name in ("precision", "recall", "ndcg") for k in CUTOFFS)


@dataclass(frozen=True)
class Ranked:
    """The head of each user's list, and how good it is."""

    user: np.ndarray
    """(n,) int64."""
    items: np.ndarray
    """(n, K) int64, best first; 0 where the user has fewer candidates."""
    values: np.ndarray
    """(n, M) float64, in the order of METRICS."""

    def means(self) -> dict[str, float]:
        """By metric; NaN without users."""
        if not len(self.user):
            return dict.fromkeys(METRICS, math.nan)
        return dict(zip(METRICS, self.values.mean(axis=0).tolist(), strict=True))

    def intervals(self, bootstrap: int, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap intervals over users, by metric."""
        return dict(zip(METRICS, bootstrap_intervals(self.values, bootstrap, seed), strict=True))


def bootstrap_intervals(values: np.ndarray, bootstrap: int, seed: int = 0) -> list[Interval]:
    """Of the mean of each column: percentiles over resamples of the rows.

    Args:
        values: (n, M).
        bootstrap: resamples; 0 leaves the intervals NaN.
        seed: the same users are drawn for the same n and seed.
    """
    n = len(values)
    if not n or not bootstrap:
        return [(math.nan, math.nan)] * values.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((bootstrap, values.shape[1]))
    for resample in range(bootstrap):
        drawn = np.bincount(rng.integers(0, n, size=n), minlength=n)
        means[resample] = drawn @ values / n
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail), axis=0)
    return [*zip(low.tolist(), high.tolist(), strict=True)]


@torch.no_grad()
def rank(
    vectors: Vectors | Counts, wanted: Bought, known: Bought | None, users_chunk: int
) -> Ranked:
    """Ranks the whole catalogue for every user with something to find.

    Args:
        vectors: of all users and items.
        wanted: what is to be found.
        known: items that are not ranked for a user; None is none.
        users_chunk: users whose scores of all items are in memory at once.

    Raises:
        InputError: scores are NaN or infinite.
    """
    users = np.flatnonzero(wanted.counts)
    heads = [
        _head(vectors, users[begin : begin + users_chunk], known)
        for begin in range(0, len(users), users_chunk)
    ]
    items = np.concatenate([*heads, np.zeros((0, LONGEST), np.int64)])
    hits = wanted.contains(np.repeat(users[:, None], LONGEST, 1), items)
    return Ranked(users, items, list_metrics(hits, wanted.counts[users]))


def _head(vectors: Vectors | Counts, users: np.ndarray, known: Bought | None) -> np.ndarray:
    """(B, K) best items of a chunk of users."""
    device = vectors.items.device
    scores_BI = vectors.scores(torch.from_numpy(users).to(device))
    if not torch.isfinite(scores_BI).all():
        raise InputError(
            "Scores are NaN or infinite: the model has diverged. Lower --learning-rate."
        )
    scores_BI[:, 0] = -torch.inf  # the unknown item
    if known is not None:
        counts = known.counts[users]
        row = np.repeat(np.arange(len(users)), counts)
        # the places of each user's items, one user after the other
        place = np.arange(counts.sum()) + np.repeat(
            known.offsets[users] - np.cumsum(counts) + counts, counts
        )
        column = torch.from_numpy(known.items[place]).to(device)
        scores_BI[torch.from_numpy(row).to(device), column] = -torch.inf
    return top_items(scores_BI, LONGEST).cpu().numpy()


def top_items(scores_BI: Tensor, k: int) -> Tensor:
    """(B, k) columns of the highest scores, best first; of equal scores the lower column.

    ``torch.topk`` leaves open which of equal scores it takes. What scores -inf is no candidate: 0
    stands where a row has fewer than k.
    """
    lowest_B1 = scores_BI.topk(min(k, scores_BI.shape[1]), dim=1).values[:, -1:]
    row, column = ((scores_BI >= lowest_B1) & (scores_BI > -torch.inf)).nonzero(as_tuple=True)
    # by (row, score falling, column): columns ascend already
    order = scores_BI[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    row, column = row[order], column[order]
    count = torch.bincount(row, minlength=len(scores_BI))
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    head_Bk = column.new_zeros(len(scores_BI), k)
    kept = place < k
    head_Bk[row[kept], place[kept]] = column[kept]
    return head_Bk


def list_metrics(hits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    r"""(n, M) of ranked lists, in the order of METRICS.

    .. math::
        \mathrm{P}@k = \frac{1}{k} \sum_{j \le k} h_j, \quad
        \mathrm{R}@k = \frac{1}{|T|} \sum_{j \le k} h_j, \quad
        \mathrm{NDCG}@k = \frac{\sum_{j \le k} h_j / \log_2(j + 1)}
            {\sum_{j \le \min(k, |T|)} 1 / \log_2(j + 1)}

    Args:
        hits: (n, K) bool, K at least the longest cutoff: whether the item at a place is wanted.
        wanted: (n,) number of wanted items, at least 1.
    """
    discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    found = np.cumsum(hits, axis=1)
    gain = np.cumsum(hits * discount, axis=1)
    best = np.cumsum(discount)
    columns = [
        *(found[:, k - 1] / k for k in CUTOFFS),
        *(found[:, k - 1] / wanted for k in CUTOFFS),
        *(gain[:, k - 1] / best[np.minimum(k, wanted) - 1] for k in CUTOFFS),
    ]
    return np.stack(columns, axis=1).astype(np.float64)
