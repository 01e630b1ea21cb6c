"""DARE's protocol for long click logs (https://arxiv.org/abs/2410.02604), shared by its two logs.

Of a user's clicks the last is for test, the last but one for validation, and every fifth of those
before, from the third last on, for training. Negatives follow the clicks of the whole log; what
the user clicked anywhere, later included, is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from data.sampling import add_negatives
from data.source import Order, Partition, Requests, Split
from data.sources.delimited import TruncatedLine


@dataclass(frozen=True, kw_only=True)
class LastClicks:
    """Options and requests of the protocol."""

    order: Order = "file"
    """"file" is DARE's: Taobao's clicks as they stand in the log, Tmall's by day and, within a day,
    as they stand. "time" sorts both by time, and clicks of one time do not see each other."""
    min_events: int = 210
    """Users with fewer clicks are left out; their clicks still count for the negatives."""
    train_targets: int = 19
    """Training targets of each user."""
    train_step: int = 5
    """Clicks from one training target to the one before."""
    negatives: int = 2
    """Negatives for each positive."""
    truncated_line: TruncatedLine = "error"
    """What to do with a last line that is cut: stop with an error, or skip the line."""

    side: ClassVar[tuple[str, ...]] = ()
    carry: ClassVar[tuple[str, ...]] = ()
    context: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        for name in ("train_targets", "train_step", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        needed = 3 + self.train_step * (self.train_targets - 1)
        if self.min_events <= needed:
            raise ValueError(
                f"min_events must be above {needed}, the position from the end of the first "
                f"training target (train_targets, train_step), got {self.min_events}."
            )

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        return pl.lit(True)

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        train = 3 + self.train_step * np.arange(self.train_targets)[::-1]
        targets: dict[Split, np.ndarray] = {
            "train": train,
            "val": np.array([2]),
            "test": np.array([1]),
        }
        return {
            split: self._targets(partition, from_end, popularity, seed)
            for split, from_end in targets.items()
        }

    def best_auc(self) -> None:
        return None

    def _targets(
        self, partition: Partition, from_end: np.ndarray, popularity: np.ndarray, seed: int
    ) -> Requests:
        """Requests for the clicks at these positions from the end of every user."""
        count = partition.count[:, None]
        target = (partition.first_row[:, None] + count - from_end).ravel()
        user_index = np.repeat(np.arange(len(partition.user)), len(from_end))
        positives = Requests(
            user=partition.user[user_index],
            end=partition.history_end()[target],
            time=partition.events["time"][target],
            offsets=np.arange(len(target) + 1),
            candidates=partition.events["item"][target],
            labels=np.ones(len(target), np.int8),
        )
        return add_negatives(
            positives,
            partition,
            popularity,
            negatives=self.negatives,
            seed=seed,
            slot=target - partition.first_row[user_index],
            group=user_index,
            excluded_group=partition.user_index(),
            excluded_item=partition.events["item"],
        )
