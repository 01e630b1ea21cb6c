"""The log that training speed is measured on: as many items and categories as Taobao's, and a few
users with very long histories.

Shapes: U users, N events, R requests, K candidates of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.source import Order, Partition, Requests, Split

USERS_PER_FRAME = 100
SHORTEST = 50
"""Events of the shortest history of lengths log_uniform."""


@dataclass(frozen=True, kw_only=True)
class ZipfLog:
    """Users whose events and candidates are items of popularity rank^-exponent.

    A user's last events each make a request: the item itself and random others. No click can be
    foretold: what is measured here is speed.
    """

    users: int = 1_000
    events_per_user: int = 5_060
    requests_per_user: int = 60
    """The history of each is all that comes before it."""
    candidates: int = 3
    """One is clicked."""
    items: int = 4_068_790
    categories: int = 9_407
    exponent: float = 1.05
    lengths: Literal["fixed", "log_uniform"] = "fixed"
    """log_uniform: histories from 50 events to all, equally many of each order of magnitude."""
    log_seed: int = 0

    name: ClassVar[str] = "zipf_log"
    side: ClassVar[tuple[str, ...]] = ()
    carry: ClassVar[tuple[str, ...]] = ()
    context: ClassVar[dict[str, int]] = {}
    order: ClassVar[Order] = "time"

    @property
    def min_events(self) -> int:
        return self.requests_per_user + 1

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """Blocks of whole users; and one user who has seen every item once, so that the vocabulary
        is whole.
        """
        for first in range(0, self.users, USERS_PER_FRAME):
            users = np.arange(first, min(first + USERS_PER_FRAME, self.users))
            draw = np.random.default_rng([self.log_seed, first])
            count = self._counts(draw, len(users))
            time_N = np.concatenate([np.arange(events) for events in count])
            yield self._frame(np.repeat(users, count), self._ranks(draw, count.sum()), time_N)
        every_item = np.arange(self.items)
        yield self._frame(np.full(self.items, self.users), every_item, every_item)

    def _counts(self, draw: np.random.Generator, users: int) -> np.ndarray:
        """(users,) int64 events."""
        longest = self.events_per_user - self.requests_per_user
        if self.lengths == "fixed":
            return np.full(users, self.events_per_user)
        relative = (SHORTEST / longest) ** draw.random(users)
        return (longest * relative).astype(np.int64) + self.requests_per_user

    def _frame(self, user: np.ndarray, rank: np.ndarray, time: np.ndarray) -> pl.DataFrame:
        # popular items lie anywhere in the table
        item = rank * 2_654_435_761 % self.items
        return pl.DataFrame(
            {"user": user, "item": item, "category": item % self.categories, "time": time}
        )

    def _ranks(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """(count,) int64 popularity ranks from 0 up: the inverse of the continuous distribution."""
        power = 1 - self.exponent
        largest = (self.items + 1.0) ** power
        return ((1 + draw.random(count) * (largest - 1)) ** (1 / power)).astype(np.int64) - 1

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        """Not used."""
        return pl.lit(value=True)

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """The last event is the test's, the one before it validation's."""
        real = partition.count <= self.events_per_user
        end_U = (partition.first_row + partition.count)[real]
        latest = np.arange(self.requests_per_user)
        end_UR = end_U[:, None] - 1 - latest
        users = partition.user[real]
        splits: dict[Split, np.ndarray] = {"train": latest > 1, "val": latest == 1}
        splits["test"] = latest == 0
        return {
            name: self._split(partition, users, end_UR[:, chosen], seed)
            for name, chosen in splits.items()
        }

    def _split(
        self, partition: Partition, users: np.ndarray, end_UR: np.ndarray, seed: int
    ) -> Requests:
        end = end_UR.ravel()
        draw = np.random.default_rng([seed, end_UR.shape[1], *users[:1]])
        items = partition.events["item"]
        candidates = items[draw.integers(len(items), size=(len(end), self.candidates))]
        candidates[:, 0] = items[end]
        return Requests(
            user=np.repeat(users, end_UR.shape[1]),
            end=end,
            time=partition.events["time"][end],
            offsets=np.arange(len(end) + 1) * self.candidates,
            candidates=candidates.ravel(),
            labels=np.tile(np.arange(self.candidates) == 0, len(end)).astype(np.int8),
        )

    def best_auc(self) -> float | None:
        """Chance's: nothing says which is clicked."""
        return None
