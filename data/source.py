"""What a source of events must say about itself, and what the store builder hands back to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import polars as pl

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass
class Requests:
    """Requests of one split and one partition, flat: C candidates in n requests."""

    user: np.ndarray
    """(n,) int64, dense user id."""
    end: np.ndarray
    """(n,) int64: row of the partition's events; the history ends before it."""
    time: np.ndarray
    """(n,) int64: later than every event of the history."""
    offsets: np.ndarray
    """(n + 1,) int64: candidates of request i are ``offsets[i]:offsets[i + 1]``."""
    candidates: np.ndarray
    """(C,) int32, item ids."""
    labels: np.ndarray
    """(C,) int8: 0 or 1."""
    context: dict[str, np.ndarray] = field(default_factory=dict)
    """(n,) int32 each."""


@dataclass(frozen=True)
class Partition:
    """One partition's events, sorted by (user, time), as a source sees them to form its requests."""

    events: dict[str, np.ndarray]
    """item, category, side columns, action: int32 ids; time: int64; and the source's
    ``carry`` columns as it gave them."""
    user: np.ndarray
    """(U,) int64, dense ids."""
    first_row: np.ndarray
    """(U,) int64."""
    count: np.ndarray
    """(U,) int64."""


class Source(Protocol):
    """A log that becomes an event store."""

    name: str
    side: tuple[str, ...]
    """Item attributes beside the category."""
    carry: tuple[str, ...]
    """Columns that the source needs for its requests but that the store does not keep
    (basket, week, label ...)."""
    context: dict[str, int]
    """Context columns of its requests -> num_embeddings."""
    min_events: int
    """Users with fewer events get no rows in the store (they still count for vocabularies)."""

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """Frames in file order: user, item, time (int64), and where the log has them category,
        the side columns, action and the carry columns. Ids are as in the log (int or str)."""

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        """Boolean: which events count for the popularity that negatives are drawn by."""

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """Requests of one partition. ``popularity``: (num items,) int64 counts by item id.
        Draws depend on ``seed`` and the user, not on the partitioning."""
