"""Rows of ids whose clicks follow a known crossing of their fields: alike in all dimensions of the
embeddings, of each dimension's own, or of all dimensions with all.

Shapes: N rows, F fields, I ids of each, D width, P pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from data.errors import InputError
from data.flat_source import FlatSource, random_split
from data.sampling import hash64
from data.source import SPLITS

ROWS_PER_FRAME = 100_000
MIN_CLICKS = 100
"""For a best AUC: with 100 of each its standard deviation is about 0.03."""
BINS = 2**20
"""Of the true probability, whose test rows are counted: memory does not grow with the log, and the
best AUC is exact to about 1e-6."""
# which random number is meant: one stream for each use; 0 is the split's
_ID, _CLICK, _RADIUS, _ANGLE, _PAIR = range(1, 6)
_SIGNS = {2: (6, 7, 8), 3: (9, 10, 11)}
"""By how many fields meet: of the shared, the separate and the full signs."""
Groups = list[tuple[tuple[int, ...], np.ndarray]]
"""Fields that meet, and the (D, D, ...) numbers that their dimensions' products count."""


@dataclass(frozen=True, kw_only=True)
class Teacher(FlatSource):
    r"""A generated table of any size: columns f1, f2, ... of ids, and clicks that follow products
    of the ids' hidden vectors, two fields at a time, or three.

    The id of rank k comes in proportion to :math:`k^{-zipf}`, each field's apart from all others'.
    Every id of every field has a hidden vector u of ``width`` numbers, and a row is clicked with
    probability

    .. math:: \sigma\Big(\frac{scale}{\sqrt{P}} \sum_{(i,j)} u_i^\top C^{ij} u_j\Big), \quad
              C^{ij} = B^{ij} / \lVert B^{ij} \rVert_F

    over P pairs i < j of fields. ``kappa`` says which dimensions meet:

    .. math::
        B &= (1 - t)\, s\, I / \sqrt{D} + t\, \mathrm{diag}(s_d) / \sqrt{D}, & t &= 2 κ \le 1 \\
        B &= (2 - t)\, \mathrm{diag}(s_d) / \sqrt{D} + (t - 1)\, (s_{de}) / D, & t &> 1

    with random signs, those of a pair drawn apart from all other pairs':

    * 0: one sign s a pair. Filters shared over the dimensions are right (FwFM, CIN).
    * 0.5: a sign :math:`s_d` for each dimension, half of them +, so that their mean, which is all
      that a shared filter sees of them, is 0. Filters of each dimension's own are right (FvFM,
      SECN). Learned embeddings do not bring the shared ones back: they may change the signs of a
      field in dimension d, which changes those of all its pairs at once, and among four fields or
      more there are more pairs than fields.
    * 1: a sign for each two dimensions. Full mixing is right (FmFM, DCN-V2).

    ``triples`` gives that share of the log odds' variance to products of three fields, all triples
    alike, :math:`\sum_{def} C^{ijk}_{def} u_{id} u_{je} u_{kf}` with C of the same kind in three
    dimensions: what one layer of a crossing cannot say and two can.

    Vectors are normal, then shifted and mixed so that over a field's ids, as often as they come,
    they have mean 0 and covariance I. So whatever kappa is, the log odds have mean 0 and standard
    deviation ``scale`` over the rows, a single field says nothing of a click, and about half of the
    rows are clicked.

    Every row is a function of (log_seed, its number), so the table streams; memory holds the
    hidden vectors. Clicks and split depend on --seed.
    """

    rows: int = 150_000
    """Rows of the table."""
    fields: int = 12
    """Columns of ids (F)."""
    ids: int = 16
    """Ids of each field (I), more than the width. Few ids in many rows let models find the hidden
    vectors."""
    zipf: float = 0.5
    """0: all ids of a field come equally often; 1: the one of rank k 1 / k times as often as the
    first."""
    width: int = 4
    """Numbers of a hidden vector (D), an even number from 4: of two, half of them +, the one would
    say the other."""
    kappa: float = 0.5
    """0: pairs weigh all dimensions alike; 0.5: each apart; 1: each with each; or between."""
    scale: float = 2.0
    """Standard deviation of the log odds: towards 0 chance decides alone (best AUC 0.5), towards
    infinity the row does (1)."""
    pairs: float = 1.0
    """Share of all pairs of fields that matter, at least one pair."""
    triples: float = 0.0
    """Share of the log odds' variance from products of three fields; the rest is of two."""
    log_seed: int = 0
    """Seed of the rows and of what they mean; clicks and split depend on --seed."""

    name: ClassVar[str] = "teacher"
    # what a log in a file needs: no options here
    path: ClassVar[tuple[()]] = ()
    split: ClassVar[None] = None
    truncated_line: ClassVar[str] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("rows", 1), ("fields", 2), ("ids", 5), ("width", 4), ("log_seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.width % 2:
            raise InputError(
                f"width is {self.width}; give an even number, so that half of the signs can be +."
            )
        if self.ids <= self.width:
            raise InputError(
                f"ids is {self.ids} for vectors of width {self.width}: so few cannot vary in every "
                f"direction. Give at least {self.width + 1} ids, or a smaller width."
            )
        for name, most in (("zipf", 4), ("kappa", 1), ("pairs", 1), ("triples", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name} must be from 0 to {most}, got {getattr(self, name)}.")
        if self.triples and self.fields < 3:
            raise InputError(
                f"triples is {self.triples} and there are {self.fields} fields: give fields 3 or "
                "more, or leave triples out."
            )
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale must be a positive number, got {self.scale}.")
        # positives and negatives of the test rows so far; no option, so not a field
        object.__setattr__(self, "_test", np.zeros((2, BINS), np.int64))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"f{number}" for number in range(1, self.fields + 1))

    @property
    def default_ratio(self) -> tuple[int, int, int]:
        return (7, 1, 2)

    @property
    def default_min_count(self) -> int:
        return 1

    def row_frames(self, seed: int) -> Iterator[pl.DataFrame]:
        self._test.fill(0)
        vectors_FID, matrix, triples = self.vectors(), self.matrix(), self.triple_groups()
        for first in range(0, self.rows, ROWS_PER_FRAME):
            row = np.arange(first, min(first + ROWS_PER_FRAME, self.rows))
            ids_NF = self._ids(row)
            probability = 1 / (1 + np.exp(-logit(ids_NF, vectors_FID, matrix, triples)))
            label = _uniform(seed, row, np.zeros(1, np.int64), _CLICK) < probability
            split = random_split(first, len(row), self.ratio, seed)
            self._count_test(probability, label, split)
            columns = {name: ids_NF[:, place] for place, name in enumerate(self.columns)}
            yield pl.DataFrame({"split": split, "label": label.astype(np.int8)} | columns)

    def best_auc(self) -> float | None:
        """AUC of the true probabilities as scores of the test clicks.

        No model ranks better on average. The drawn clicks decide which it is for this table, so a
        model may end slightly above it by luck. None where fewer than MIN_CLICKS test rows are
        clicked, or are not: luck would decide.
        """
        positives, negatives = self._test
        if min(positives.sum(), negatives.sum()) < MIN_CLICKS:
            return None
        below = np.cumsum(negatives) - negatives / 2  # ties count half
        return float((positives * below).sum() / (positives.sum() * negatives.sum()))

    def popularity(self) -> np.ndarray:
        """(I,) float64 shares of the ids of a field."""
        weight = np.arange(1, self.ids + 1) ** -float(self.zipf)
        return weight / weight.sum()

    def vectors(self) -> np.ndarray:
        """(F, I, D) float64 hidden vectors: of each field with mean 0 and covariance I."""
        row, number = np.arange(self.fields * self.ids)[:, None], np.arange(self.width)
        radius = np.sqrt(-2 * np.log1p(-_uniform(self.log_seed, row, number, _RADIUS)))
        angle = 2 * math.pi * _uniform(self.log_seed, row, number, _ANGLE)
        vectors_FID = (radius * np.cos(angle)).reshape(self.fields, self.ids, self.width)
        share = self.popularity()[:, None]
        vectors_FID -= (share * vectors_FID).sum(axis=1, keepdims=True)
        covariance_FDD = vectors_FID.swapaxes(1, 2) @ (share * vectors_FID)
        root_FDD = np.linalg.cholesky(covariance_FDD)
        return np.linalg.solve(root_FDD, vectors_FID.swapaxes(1, 2)).swapaxes(1, 2)

    def interacting(self) -> list[tuple[int, int]]:
        """The P pairs i < j of fields, from 0, that matter."""
        every = list(itertools.combinations(range(self.fields), 2))
        count = max(1, round(self.pairs * len(every)))
        luck = hash64(self.log_seed, self._key(every), np.zeros(1, np.int64), _PAIR)
        return [every[place] for place in sorted(np.argsort(luck)[:count])]

    def pair_matrices(self) -> np.ndarray:
        """(P, D, D) float64 C of the formula above."""
        return self._weights(self.interacting())

    def triple_groups(self) -> Groups:
        """The triples of fields with their (D, D, D) C, of unit norm each, times what gives all of
        them the share ``triples`` of the variance.
        """
        if not self.triples:
            return []
        every = list(itertools.combinations(range(self.fields), 3))
        factor = self.scale * math.sqrt(self.triples / len(every))
        return list(zip(every, factor * self._weights(every), strict=True))

    def _weights(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """(P, D, ..., D) C of groups of n fields, with n dimensions of D."""
        order = len(groups[0])
        shared_stream, separate_stream, full_stream = _SIGNS[order]
        key = self._key(groups)[:, None]
        unit = np.zeros((self.width,) * order)
        unit[(np.arange(self.width),) * order] = 1 / math.sqrt(self.width)
        # signs of a group, or of each of its first dimensions, beside unit's n dimensions
        beside = (..., *(None,) * (order - 1))
        shared = _signs(self.log_seed, key, 1, shared_stream)[beside] * unit
        luck = hash64(self.log_seed, key, np.arange(self.width), separate_stream)
        half = 2 * (luck.argsort(axis=1).argsort(axis=1) < self.width // 2) - 1
        separate = half[beside] * unit
        full = _signs(self.log_seed, key, self.width**order, full_stream)
        full = full.reshape(separate.shape) / self.width ** (order / 2)
        t = 2 * self.kappa
        mixed = (1 - t) * shared + t * separate if t <= 1 else (2 - t) * separate + (t - 1) * full
        every_dimension = tuple(range(1, order + 1))
        return mixed / np.sqrt(np.square(mixed).sum(axis=every_dimension, keepdims=True))

    def matrix(self) -> np.ndarray:
        """(F D, F D) float64: C in the block of each pair, 0 elsewhere, times scale / sqrt(P) and
        the root of the pairs' share of the variance.
        """
        pairs = self.interacting()
        blocks = np.zeros((self.fields, self.fields, self.width, self.width))
        first, second = np.array(pairs).T
        factor = self.scale * math.sqrt((1 - self.triples) / len(pairs))
        blocks[first, second] = self.pair_matrices() * factor
        return blocks.swapaxes(1, 2).reshape(self.fields * self.width, -1)

    def _key(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """(P,) int64, the same number for a group of fields whatever other groups matter."""
        places = np.array(groups)
        return places @ self.fields ** np.arange(places.shape[1])[::-1]

    def _ids(self, row: np.ndarray) -> np.ndarray:
        """(N, F) int32 ids from 0, the most popular."""
        uniform = _uniform(self.log_seed, row[:, None], np.arange(self.fields), _ID)
        bounds = np.cumsum(self.popularity())[:-1]  # without the last, which may round below 1
        return np.searchsorted(bounds, uniform, side="right").astype(np.int32)

    def _count_test(self, probability: np.ndarray, label: np.ndarray, split: np.ndarray) -> None:
        test = split == SPLITS.index("test")
        place = np.minimum(probability[test] * BINS, BINS - 1).astype(np.int64)
        for counts, chosen in zip(self._test, (label[test], ~label[test]), strict=True):
            counts += np.bincount(place[chosen], minlength=BINS)


def logit(
    ids_NF: np.ndarray, vectors_FID: np.ndarray, matrix: np.ndarray, triples: Groups | None = None
) -> np.ndarray:
    """(N,) log odds of rows, by the source's ``vectors``, ``matrix`` and ``triple_groups``."""
    x_NFD = vectors_FID[np.arange(ids_NF.shape[1]), ids_NF]
    x = x_NFD.reshape(len(ids_NF), -1)
    total = ((x @ matrix) * x).sum(axis=1)
    for (i, j, k), c in triples or ():
        products_NDD = x_NFD[:, j, :, None] * x_NFD[:, k, None, :]
        mixed_ND = products_NDD.reshape(len(x), -1) @ c.reshape(len(c), -1).T
        total += (x_NFD[:, i] * mixed_ND).sum(axis=1)
    return total


def _uniform(seed: int, user: np.ndarray, number: np.ndarray, stream: int) -> np.ndarray:
    """float64 in [0, 1) for every two keys, of the shape that they broadcast to."""
    return (hash64(seed, user, number, stream) >> np.uint64(11)) * 2.0**-53


def _signs(seed: int, key_P1: np.ndarray, count: int, stream: int) -> np.ndarray:
    """(P, count) float64, each +1 or -1."""
    bits = hash64(seed, key_P1, np.arange(count), stream) >> np.uint64(63)
    return 1 - 2.0 * bits.astype(np.float64)
