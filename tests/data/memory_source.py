"""A source that holds its log in memory, and forms no requests unless a test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import polars as pl

from data.source import Order, Partition, Requests, Split


@dataclass(frozen=True, kw_only=True)
class MemorySource:
    frames: list[pl.DataFrame]
    order: Order = "time"
    min_events: int = 1
    side: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()
    form: Callable[[Partition], dict[Split, Requests]] = field(default=lambda partition: {})

    name: ClassVar[str] = "memory"
    context: ClassVar[dict[str, int]] = {}

    def event_frames(self) -> Iterator[pl.DataFrame]:
        yield from self.frames

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        return pl.lit(True)

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        return self.form(partition)

    def best_auc(self) -> None:
        return None


def log(**columns: list) -> MemorySource:
    """A source of one frame."""
    return MemorySource(frames=[pl.DataFrame(columns)])
