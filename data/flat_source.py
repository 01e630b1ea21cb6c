"""Tables of labelled rows without users: what their sources share.

Shapes: N rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.errors import InputError
from data.sampling import hash64
from data.source import SPLITS, TruncatedLine

Preparation = Literal["x1", "x4"]

MAX_BUCKETS = 2**31 - 3
"""Ids are int32, and the first two are no buckets."""


@dataclass(frozen=True, kw_only=True)
class FlatSource(ABC):
    """A table that becomes a flat store. A frozen dataclass, whose fields are the command line's
    options, as of a ``Source``.
    """

    path: Path | tuple[Path, ...]
    """The log."""
    split: str | None
    """How rows are split."""
    split_ratio: tuple[int, int, int] | None = None
    """Parts of the rows in train, validation and test, such as 7 2 1; by default the
    preparation's."""
    min_count: int | None = None
    """Training rows that a value must be in to get an id of its own. Rarer ones share id 0,
    unknown. By default the preparation's."""
    hash_buckets: int | None = None
    """Hash the values of each column into so many ids in place of counting them: faster, and
    memory stays flat, but values may share an id, and none can be found again."""
    training_share: float = 1.0
    """Keep this share of the training rows, chosen at random, a smaller share out of a larger one;
    validation and test stay as they are. To see what fewer rows would teach."""
    truncated_line: TruncatedLine = "error"
    """What to do with a last line that is cut: stop with an error, or skip the line."""

    name: ClassVar[str]

    def best_auc(self) -> float | None:
        """AUC of the true probabilities on the test rows; None where the truth is not known."""
        return None

    def __post_init__(self) -> None:
        if self.split_ratio is not None and min(self.split_ratio) < 1:
            raise InputError(
                f"split_ratio is {_words(self.split_ratio)}: each of the three splits needs a "
                "part, at least 1. Give three whole numbers such as 8 1 1."
            )
        if self.min_count is not None and self.hash_buckets is not None:
            raise InputError(
                "min_count and hash_buckets exclude each other: hashed values are not counted. "
                "Leave out one of them."
            )
        if self.min_count is not None and self.min_count < 1:
            raise InputError(
                f"min_count is {self.min_count}; give at least 1, which keeps every value."
            )
        if not 0 < self.training_share <= 1:
            raise InputError(
                f"training_share is {self.training_share}; give a share above 0 and at most 1, "
                "such as 0.1."
            )
        if self.hash_buckets is not None and not 1 <= self.hash_buckets <= MAX_BUCKETS:
            raise InputError(
                f"hash_buckets is {self.hash_buckets}; give a number from 1 to {MAX_BUCKETS:,}."
            )

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of ids, in the order of the store."""

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns of float numbers, in the order of the store."""
        return ()

    @property
    @abstractmethod
    def default_ratio(self) -> tuple[int, int, int]:
        """``split_ratio`` of the preparation."""

    @property
    @abstractmethod
    def default_min_count(self) -> int:
        """``min_count`` of the preparation."""

    @property
    def ratio(self) -> tuple[int, int, int]:
        return self.split_ratio or self.default_ratio

    @abstractmethod
    def row_frames(self, seed: int) -> Iterator[pl.DataFrame]:
        """Frames in file order: split (int8, place in ``SPLITS``), label (int8), the columns
        (integers as in the file, null where empty) and the numbers (float32, NaN where empty).
        Every frame has the same columns and types.
        """

    def original(self, column: str, values: pl.Series) -> pl.Series:
        """Integers of ``row_frames`` as the file writes them."""
        return values


def random_split(first_row: int, count: int, ratio: tuple[int, int, int], seed: int) -> np.ndarray:
    """(count,) int8 splits of rows ``first_row`` and after: a hash of (seed, row) alone."""
    rows = np.arange(first_row, first_row + count)
    luck = hash64(seed, rows, np.zeros(1, np.int64), 0) % np.uint64(sum(ratio))
    return _by_bounds(luck, np.cumsum(ratio)[:2])


def left_out(split: np.ndarray, first_row: int, share: float, seed: int) -> np.ndarray:
    """(count,) which training rows a ``training_share`` leaves out: a hash of (seed, row) alone,
    so those of a larger share are among those of a smaller one.
    """
    rows = np.arange(first_row, first_row + len(split))
    luck = hash64(seed, rows, np.ones(1, np.int64), 0) / 2.0**64
    return (split == SPLITS.index("train")) & (luck >= share)


def ordered_split(place: np.ndarray, total: int, ratio: tuple[int, int, int]) -> np.ndarray:
    """(N,) int8 splits of rows by their place among ``total``: the first part trains.

    >>> ordered_split(np.arange(10), 10, (7, 2, 1)).tolist()
    [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]
    """
    return _by_bounds(place, np.cumsum(ratio)[:2] * total // sum(ratio))


def _by_bounds(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return np.searchsorted(bounds.astype(values.dtype), values, side="right").astype(np.int8)


def check_labels(rows: dict[str, int], positives: dict[str, int]) -> None:
    """Raises InputError where a split cannot be trained or judged on."""
    for split in SPLITS:
        if 0 < positives[split] < rows[split]:
            continue
        raise InputError(
            f"The {split} split has {rows[split]:,} rows, {positives[split]:,} of them positive; "
            "every split needs rows with label 1 and rows with label 0. Prepare a larger part of "
            "the log, give the split a larger part (--split-ratio), or split in another way."
        )


def _words(ratio: tuple[int, ...]) -> str:
    return " ".join(map(str, ratio))
