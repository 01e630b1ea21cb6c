"""Distinct values of a log in order of first appearance, collected frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

MIN_PENDING = 1_000_000


class Vocabulary:
    """Distinct values of one column, with sums and last values of other columns.

    Frames are reduced when they come and merged when what waits outgrows what is merged, so that
    each value is merged O(log) times and memory follows the number of distinct values.
    """

    def __init__(self, *, sums: Sequence[str] = (), last: Sequence[str] = ()) -> None:
        """``sums`` and ``last``: columns to add up, and columns whose last value that is not null
        is kept.
        """
        self._columns = ["original", *sums, *last]
        self._aggregates = [pl.col(name).sum() for name in sums]
        self._aggregates += [pl.col(name).last(ignore_nulls=True) for name in last]
        self._merged: pl.DataFrame | None = None
        self._pending: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        """``frame``: column ``original`` (nulls are passed over) and the columns of __init__."""
        frame = frame.select(self._columns).drop_nulls("original")
        self._pending.append(self._reduce([frame]))
        merged = 0 if self._merged is None else self._merged.height
        if sum(part.height for part in self._pending) > max(merged, MIN_PENDING):
            self._merge()

    def finish(self) -> pl.DataFrame:
        """All values in order of first appearance."""
        self._merge()
        assert self._merged is not None
        return self._merged

    def _merge(self) -> None:
        parts = self._pending if self._merged is None else [self._merged, *self._pending]
        self._merged, self._pending = self._reduce(parts), []

    def _reduce(self, parts: list[pl.DataFrame]) -> pl.DataFrame:
        grouped = pl.concat(parts).group_by("original", maintain_order=True)
        return grouped.agg(self._aggregates)


def encode(values: pl.Series, vocabulary: pl.DataFrame) -> pl.Series:
    """int32 ids of ``values``, from 1 by row of the vocabulary; null becomes 0."""
    ids = vocabulary.select("original", id=pl.int_range(1, pl.len() + 1, dtype=pl.Int32))
    frame = values.alias("original").to_frame()
    if vocabulary.height > frame.height:  # the join below keeps its right side in memory
        ids = ids.join(frame.unique(), on="original", how="semi")
    found = frame.join(ids, on="original", how="left", maintain_order="left")
    return found["id"].fill_null(0).alias(values.name)
