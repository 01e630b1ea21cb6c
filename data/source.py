"""What a source of events must say about itself, and what the store builder hands back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import polars as pl

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Order = Literal["time", "file"]

TruncatedLine = Literal["error", "skip"]
"""What a last line that is cut is answered with."""


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
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    """(n,) float32 each; NaN is missing."""

    def __len__(self) -> int:
        return len(self.user)

    def select(self, chosen: np.ndarray) -> Requests:
        """The requests where ``chosen``, (n,) boolean, is true."""
        counts = np.diff(self.offsets)
        of_chosen = np.repeat(chosen, counts)
        return Requests(
            user=self.user[chosen],
            end=self.end[chosen],
            time=self.time[chosen],
            offsets=np.concatenate([[0], np.cumsum(counts[chosen])]),
            candidates=self.candidates[of_chosen],
            labels=self.labels[of_chosen],
            context={name: values[chosen] for name, values in self.context.items()},
            numbers={name: values[chosen] for name, values in self.numbers.items()},
        )


@dataclass(frozen=True)
class Partition:
    """One partition's N events of U users, sorted by (user, time), ties in file order, as a
    source sees them to form its requests.
    """

    events: dict[str, np.ndarray]
    """(N,) each. item, category, side columns, action: int32 ids; time: int64; and the source's
    ``carry`` columns as it gave them."""
    user: np.ndarray
    """(U,) int64, dense ids, ascending."""
    first_row: np.ndarray
    """(U,) int64."""
    count: np.ndarray
    """(U,) int64, at least the source's ``min_events``."""
    original: pl.Series
    """(U,) ids as in the log, for messages."""

    def user_index(self) -> np.ndarray:
        """(N,) int64: which of the U users each event belongs to."""
        return np.repeat(np.arange(len(self.user)), self.count)

    def original_user(self, user: int) -> object:
        """Id in the log of the user of a dense id."""
        return self.original[int(np.searchsorted(self.user, user))]

    def history_end(self) -> np.ndarray:
        """(N,) int64: the first event of the same user and time, before which the history of each
        event ends.
        """
        user, time = self.user_index(), self.events["time"]
        new = np.ones(len(time), bool)
        new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
        return np.maximum.accumulate(np.where(new, np.arange(len(time)), 0))


@dataclass(frozen=True)
class FramePart:
    """A stretch of a log that is read apart from the others, maybe on another machine."""

    name: str
    """For messages, such as the file."""
    frames: Callable[[], Iterator[pl.DataFrame]]
    """Something that can be pickled."""


class Source(Protocol):
    """A log that becomes an event store. Best a frozen dataclass: its fields are the command
    line's options and are kept in ``store.json``.
    """

    @property
    def name(self) -> str: ...

    @property
    def side(self) -> tuple[str, ...]:
        """Item attributes beside the category."""

    @property
    def carry(self) -> tuple[str, ...]:
        """Numeric columns that the source needs for its requests but that the store does not keep
        (basket, week, label ...). ``row``, the number of the event in the log from 1, is made by
        the builder and not in the frames.
        """

    @property
    def context(self) -> dict[str, int]:
        """Context columns of its requests -> num_embeddings."""

    @property
    def min_events(self) -> int:
        """Users with fewer events get no rows in the store (they still count for vocabularies)."""

    @property
    def order(self) -> Order:
        """A user's events are sorted by time, events of one time as they stand in the file.
        ``"time"``: those of one time do not see each other. ``"file"``: they do; the position
        (0 for a user's first event) takes the place of the time.
        """

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """Frames in file order: user, item, time (int64), and where the log has them category,
        the side columns, action and the carry columns. Ids are as in the log: integers from 0 to
        2**63 - 1, or str; null only in category, side columns and action (it becomes id 0).
        Every frame has the same columns and types; a few 100,000 rows each is a good size.
        """

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        """Boolean: which events of an event frame count for the popularity that negatives are
        drawn by.
        """

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """Requests of one partition; a split that is left out has none. ``popularity``:
        (num_embeddings of item,) int64 counts by item id, 0 for id 0.
        Draws depend on ``seed`` and the user, not on the partitioning: see
        ``data.sampling.draw_negatives``.
        """

    # A source may have, for reading on several machines:
    # ``event_parts() -> list[FramePart]``: the frames of ``event_frames``, part by part;
    # ``survey_parts() -> list[FramePart]``: frames that the source has to see before
    # ``popularity`` is asked, and ``survey(frames)``, which is told all of them in order;
    # ``tallies() -> object`` and ``add_tallies(tallies)``: what ``requests`` has counted in this
    # object, and what it has counted in another one.
    #
    # A source may have ``left_out() -> dict[str, int]``, asked once at the end: requests that were
    # not formed, by reason; and ``context_words() -> dict[str, pl.Series]``, values of its context
    # columns as in the log, by id, null where an id stands for none.

    def best_auc(self) -> float | None:
        """The best AUC that any model can reach on the test split, where the truth is known and
        there are clicks enough to tell.
        Asked once, after the requests of the last partition.
        """
