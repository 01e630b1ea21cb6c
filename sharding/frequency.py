"""How often each row of a table is looked up: what a shard has to do, what a cache catches.

Shapes: V rows, m blocks of rows, b groups of rows that are equally frequent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCKS = 4096
"""Blocks of consecutive rows whose shares are kept."""
GROUPS = 1024
"""Groups of rows of like frequency that are kept."""


@dataclass(frozen=True, eq=False)
class RowFrequency:
    """Shares of a table's lookups, kept twice: by place, for shards; by size, for caches and for
    the number of different rows that a step touches.
    """

    edges: np.ndarray
    """(m + 1,) first row of each block, and V."""
    cumulative: np.ndarray
    """(m + 1,) share of lookups before each edge, from 0 to 1."""
    probability: np.ndarray
    """(b,) share of one row of each group, falling."""
    rows: np.ndarray
    """(b,) rows of each group."""

    @classmethod
    def uniform(cls, num_embeddings: int) -> RowFrequency:
        """Every row alike."""
        return cls(
            np.array([0.0, num_embeddings]),
            np.array([0.0, 1.0]),
            np.array([1 / num_embeddings]),
            np.array([float(num_embeddings)]),
        )

    @classmethod
    def counted(cls, counts: np.ndarray) -> RowFrequency:
        """From (V,) counts by row; uniform where nothing was counted."""
        total = counts.sum()
        if total == 0:
            return cls.uniform(len(counts))
        edges = np.unique(np.linspace(0, len(counts), min(len(counts), BLOCKS) + 1).astype(int))
        sums = np.concatenate([[0], np.cumsum(counts, dtype=np.float64)])
        values, rows = np.unique(counts, return_counts=True)
        probability, rows = values[::-1] / total, rows[::-1].astype(float)
        return cls(edges.astype(float), sums[edges] / total, *_grouped(probability, rows))

    @classmethod
    def zipf(cls, num_embeddings: int, exponent: float) -> RowFrequency:
        r"""Row of rank k with a share proportional to :math:`k^{-s}`; rows stand so that blocks of
        neighbours are looked up alike, as stores lay them out.

        Args:
            num_embeddings: V.
            exponent: s; 0 is uniform.
        """
        edges = _geometric_edges(num_embeddings)
        mass = np.diff(_zipf_integral(edges + 0.5, exponent))
        shares, rows = mass / mass.sum(), np.diff(edges)
        ends = np.array([0.0, num_embeddings])
        return cls(ends, np.array([0.0, 1.0]), *_grouped(shares / rows, rows))

    def share(self, first: float, last: float) -> float:
        """Of the lookups that fall into rows ``first`` to ``last`` (excluded)."""
        begin, end = np.interp([first, last], self.edges, self.cumulative)
        return float(end - begin)

    def distinct(self, lookups: float) -> float:
        """Expected number of different rows among so many independent lookups."""
        missed = np.exp(lookups * np.log1p(-np.minimum(self.probability, 1 - 1e-12)))
        return float((self.rows * (1 - missed)).sum())

    def hottest(self, share_of_rows: float) -> float:
        """Share of lookups that the most frequent ``share_of_rows`` of all rows catch."""
        rows = np.concatenate([[0], np.cumsum(self.rows)])
        caught = np.concatenate([[0], np.cumsum(self.rows * self.probability)])
        return float(np.interp(share_of_rows * rows[-1], rows, caught))


def _grouped(probability: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most GROUPS groups; neighbours are merged, with their mean."""
    if len(rows) <= GROUPS:
        return probability, rows
    # few rows are hot: half of the groups go to the first ranks, the others to the rest
    exact = GROUPS // 2
    starts = np.unique(
        np.concatenate([np.arange(exact), np.geomspace(exact, len(rows) - 1, exact).astype(int)])
    )
    merged = np.add.reduceat(rows, starts)
    return np.add.reduceat(probability * rows, starts) / merged, merged


def _geometric_edges(num_embeddings: int) -> np.ndarray:
    edges = np.geomspace(1, num_embeddings, GROUPS).round() if num_embeddings > 1 else [1.0]
    return np.unique(np.concatenate([[0.0], edges]))


def _zipf_integral(x: np.ndarray, exponent: float) -> np.ndarray:
    """Of k^-s up to x: the sum over ranks, each taken as wide as one."""
    return np.log(x) if exponent == 1 else x ** (1 - exponent) / (1 - exponent)
