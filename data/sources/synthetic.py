"""Users with planted interests: the probability of every click is known, so the best AUC is too.

Shapes: U users, N events, R requests, K candidates of each, W events that decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.sampling import hash64
from data.source import SPLITS, FramePart, Order, Partition, Requests, Split

ROWS_PER_FRAME = 250_000
MIN_CLICKS = 100
"""For a best AUC: with 100 of each its standard deviation is about 0.03."""
SECONDS_PER_PAGE = 3600
SECONDS_OF_STARTS = 30 * 24 * 3600
FOLLOWED = 0.5
"""Share of the events of a topic whose valence is what the user feels for it, and with a lag of the
events that follow the page that decides; others are any."""
TOPIC_WEIGHT = 20
"""Events of other topics that one of the candidate's topic outweighs."""
# which random number of a user is meant: one stream for each use
_LENGTH, _START, _ITEM, _INTEREST, _FAVOURITE, _LABEL = range(6)
_FEELING, _VALENCE, _FOLLOWS, _WHICH, _SOURCE, _CATEGORY = range(6, 12)

Similarity = Literal["category", "same", "different"]


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    r"""A log of pages, each of ``candidates`` items shown to a user at once.

    Half of the items belong to one of the user's favourite categories, the others to any; within
    both, item of rank i appears in proportion to about 1 / i (Zipf). A user's last page is a
    test request, the one before it a validation request and the ``train_requests`` before them
    are training requests. The history is the events of all earlier pages. A candidate is clicked
    with probability

    .. math:: \sigma((\log(1 + m) - m_0) / noise), \quad
              m = \sum_{j=1}^{W} (1 - (j - 1) / W) ([category_j = category] + [item_j = item])

    where j counts the history's events from the end, W is ``history_needed`` and m_0 lies between
    the m that chance and that a favourite category would give. So a model has to find the events
    that match the candidate, among up to W, and to weigh them by recency.

    That is ``similarity`` category. In the two others the log has no category: an item has a topic
    and a valence, +1 or -1, which only its id can tell, and all items are equally popular. A
    candidate is clicked with probability

    .. math:: \sigma((\bar c - c_0) / noise), \quad
              \bar c = \sum_{j=1}^{W} w_j c_j \Big/ \sum_{j=1}^{W} w_j

    an attention by topic: :math:`w_j` is 20 for an event of the candidate's topic and 1 for any
    other. What an event contributes, :math:`c_j`, is +1 or -1:

    * ``same``: as the topic is the candidate's or not. What makes an event matter is also what it
      contributes, so one embedding can serve both. :math:`c_0` lies between what a favourite topic
      and any other would give.
    * ``different``: as its valence is the candidate's or not. Users like or dislike each topic, so
      half of the events of a topic have one valence and the others any. An embedding in which
      events of one topic are alike is not one in which some of them mean the opposite of the
      others. :math:`c_0 = 0`.

    The events are the same in both; only the clicks differ.

    With a ``lag`` of l events interests are not lasting: the page that began l events before a page
    decides. Half of a page's items are each of the category of one of that page's items, the others
    of any, all categories and items equally popular. A candidate is clicked with probability
    :math:`\sigma(1 / noise)` where that page has its category and :math:`\sigma(-1 / noise)` where
    it does not. Of all other pages only those another l, 2l, ... events before have to do with it.
    So whoever sees the last l - K events or fewer knows nothing, and among more of them other
    events agree by chance.

    Every event is a function of (log_seed, user, its number), so the log streams in blocks of
    users and no size needs more memory than another.
    """

    similarity: Similarity = "category"
    """What decides the clicks: the category that the log shows, or topics that it hides; then what
    an event contributes goes by its topic too (same) or by something else (different)."""
    users: int = 1_000
    """Users of the log."""
    events_per_user: int = 200
    """Mean over the users."""
    lengths: Literal["fixed", "exponential", "pareto"] = "exponential"
    """Distribution of the events per user; pareto has the tail exponent 2, cut at 100 means."""
    items: int = 10_000
    """Items of the log; of hidden topics few enough to learn each, e.g. 400."""
    categories: int = 100
    """Categories of the items; with similarity same or different their hidden topics."""
    interests: int = 3
    """Favourite categories (topics) of each user."""
    history_needed: int = 100
    """Most recent events before a request that decide its clicks (W); not used with a lag."""
    lag: int = 0
    """Events from the start of the page that decides to that of the request: whole pages; 0:
    interests that last."""
    noise: float = 0.5
    """Towards 0 the history decides alone (best AUC 1), towards infinity chance does (0.5)."""
    candidates: int = 4
    """Items of each page (K)."""
    train_requests: int = 8
    """Training requests of each user, at most."""
    log_seed: int = 0
    """Seed of the events; the clicks depend on --seed."""

    name: ClassVar[str] = "synthetic"
    side: ClassVar[tuple[str, ...]] = ()
    context: ClassVar[dict[str, int]] = {}
    order: ClassVar[Order] = "time"

    def __post_init__(self) -> None:
        for name, least in (
            ("users", 1), ("events_per_user", 1), ("items", 1), ("categories", 1),
            ("interests", 1), ("history_needed", 1), ("candidates", 1), ("train_requests", 0),
            ("lag", 0), ("log_seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise ValueError(f"noise must be a positive number, got {self.noise}.")
        if self.categories > self.items:
            raise ValueError(
                f"{self.categories} categories for {self.items} items: some would be empty. "
                f"Ask for at most {self.items} categories."
            )
        if self.similarity != "category" and self.items % (2 * self.categories):
            raise ValueError(
                f"{self.items} items cannot be shared out to {self.categories} topics of two "
                f"valences. Ask for a multiple of {2 * self.categories}."
            )
        if self.lag:
            self._check_lag()
        # tallies of the test requests so far, one a partition; no option, so not a field
        object.__setattr__(self, "_test", [])

    def _check_lag(self) -> None:
        if self.similarity != "category":
            raise ValueError(
                f"lag={self.lag} is of similarity 'category', not {self.similarity!r}: leave one "
                "of them out."
            )
        if self.lag % self.candidates:
            raise ValueError(
                f"lag={self.lag} is no whole number of pages of {self.candidates} candidates. Give "
                f"a multiple of {self.candidates}."
            )
        if self.items % self.categories:
            raise ValueError(
                f"{self.items} items cannot be shared out to {self.categories} categories. Ask for "
                f"a multiple of {self.categories}."
            )
        if self.events_per_user < self.lag + 2 * self.candidates:
            raise ValueError(
                f"events_per_user={self.events_per_user} has no room for a lag of {self.lag}: ask "
                f"for at least {self.lag + 2 * self.candidates}."
            )

    @property
    def carry(self) -> tuple[str, ...]:
        return () if self.similarity == "category" else ("topic", "valence")

    @property
    def min_events(self) -> int:
        """A page of history and a request."""
        return 2 * self.candidates

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """The log by user and time, in blocks of whole users."""
        self._test.clear()
        for part in self.event_parts():
            yield from part.frames()

    def event_parts(self) -> list[FramePart]:
        """One of each block of users."""
        block = max(1, ROWS_PER_FRAME // max(self.events_per_user, self.candidates))
        firsts = range(0, self.users, block)
        users = [np.arange(first, min(first + block, self.users)) for first in firsts]
        return [FramePart(f"users from {of[0]:,}", partial(self._block, of)) for of in users]

    def _block(self, user: np.ndarray) -> Iterator[pl.DataFrame]:
        yield self._events(user)

    def write_csv(self, path: Path | str) -> int:
        """Writes the log as a file with a header: user, item, category (unless it is hidden), time.
        Returns its rows.
        """
        rows = 0
        with Path(path).open("wb") as file:
            for frame in self.event_frames():
                frame.drop(self.carry).write_csv(file, include_header=rows == 0)
                rows += frame.height
        return rows

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        """All events; nothing is drawn by it here."""
        return pl.lit(value=True)

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """The last pages of each user, with clicks drawn from their true probability."""
        latest = np.arange(self.train_requests + len(SPLITS) - 1)[::-1]  # 0: a user's last page
        page_UR = (partition.count // self.candidates)[:, None] - 1 - latest
        index, column = np.nonzero(page_UR > 0)  # the first page has no history
        end = partition.first_row[index] + page_UR[index, column] * self.candidates
        row_RK = end[:, None] + np.arange(self.candidates)
        probability_RK = self._probability(partition, index, end)
        number_RK = row_RK - partition.first_row[index, None]
        luck = _uniform(
            seed, np.repeat(partition.user[index], self.candidates), number_RK.ravel(), _LABEL
        )
        label_RK = luck.reshape(row_RK.shape) < probability_RK
        split = {
            "train": latest[column] > 1,
            "val": latest[column] == 1,
            "test": latest[column] == 0,
        }
        self._test.append(_tally(probability_RK[split["test"]], label_RK[split["test"]]))
        return {
            name: Requests(
                user=partition.user[index[chosen]],
                end=end[chosen],
                time=partition.events["time"][end[chosen]],
                offsets=np.arange(chosen.sum() + 1) * self.candidates,
                candidates=partition.events["item"][row_RK[chosen]].ravel(),
                labels=label_RK[chosen].ravel().astype(np.int8),
            )
            for name, chosen in split.items()
        }

    def tallies(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Scores of the test requests that were formed here, and their clicks."""
        return self._test

    def add_tallies(self, tallies: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Adds those of requests that were formed elsewhere."""
        self._test.extend(tallies)

    def best_auc(self) -> float | None:
        """AUC of the true probabilities as scores of the test clicks.

        No model ranks better on average. The sampled clicks decide which it is for this log, so
        a model may end slightly above it by luck. None where fewer than MIN_CLICKS candidates are
        clicked, or are not: luck would decide.
        """
        if not self._test:
            return None
        score, positives, negatives = map(np.concatenate, zip(*self._test, strict=True))
        if min(positives.sum(), negatives.sum()) < MIN_CLICKS:
            return None
        return _auc(score, positives, negatives)

    def _events(self, user: np.ndarray) -> pl.DataFrame:
        """All events of a block of users."""
        count = self._counts(user)
        first_row = np.cumsum(count) - count
        user_N = np.repeat(user, count)
        number_N = np.arange(count.sum()) - np.repeat(first_row, count)
        uniform = _uniform(self.log_seed, user_N, number_N, _ITEM)
        if self.lag:
            category = self._returning(user_N, number_N)
            item = (uniform * (self.items // self.categories)).astype(np.int64)
            item = item * self.categories + category
            columns = {"user": user_N, "item": item, "category": category}
            return pl.DataFrame(columns | {"time": self._times(user, count, number_N)})
        # below 1: one of the interests; above: any category
        choice = 2 * _uniform(self.log_seed, user_N, number_N, _INTEREST)
        wanted = self._favourites(user_N, (choice * self.interests).astype(np.int64))
        time = self._times(user, count, number_N)
        if self.similarity != "category":
            topic = np.where(choice < 1, wanted, (uniform * self.categories).astype(np.int64))
            item, valence = self._hidden_items(user_N, number_N, topic)
            columns = {"user": user_N, "item": item, "time": time}
            return pl.DataFrame(columns | {"topic": topic, "valence": valence})
        item = _zipf(uniform, self.items)
        moved = item - item % self.categories + wanted
        item = np.where((choice < 1) & (moved < self.items), moved, item)
        return pl.DataFrame(
            {"user": user_N, "item": item, "category": item % self.categories, "time": time}
        )

    def _times(self, user: np.ndarray, count: np.ndarray, number: np.ndarray) -> np.ndarray:
        """(N,) int64 seconds since 1970."""
        start = _uniform(self.log_seed, user, np.zeros_like(user), _START) * SECONDS_OF_STARTS
        time = np.repeat(start.astype(np.int64), count)
        return time + SECONDS_PER_PAGE * (number // self.candidates)

    def _returning(self, user: np.ndarray, number: np.ndarray) -> np.ndarray:
        """(N,) category of each event: that of one ``lag`` back, of one ``lag`` before that, and so
        on for as long as luck has it, then any.
        """
        number = number.copy()
        follows = np.flatnonzero(number >= self.lag)
        while len(follows):
            u, n = user[follows], number[follows]
            again = _uniform(self.log_seed, u, n, _INTEREST) < FOLLOWED
            follows, u, n = follows[again], u[again], n[again]
            place = (_uniform(self.log_seed, u, n, _SOURCE) * self.candidates).astype(np.int64)
            number[follows] = n - n % self.candidates - self.lag + place
            follows = follows[number[follows] >= self.lag]
        uniform = _uniform(self.log_seed, user, number, _CATEGORY)
        return (uniform * self.categories).astype(np.int64)

    def _hidden_items(
        self, user: np.ndarray, number: np.ndarray, topic: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item and valence, 0 or 1, of each event."""
        feeling = _uniform(self.log_seed, user, topic, _FEELING) < 0.5
        any_valence = _uniform(self.log_seed, user, number, _VALENCE) < 0.5
        follows = _uniform(self.log_seed, user, number, _FOLLOWS) < FOLLOWED
        valence = 1 - np.where(follows, feeling, any_valence)
        group = 2 * self.categories
        which = _uniform(self.log_seed, user, number, _WHICH) * (self.items // group)
        return which.astype(np.int64) * group + valence * self.categories + topic, valence

    def _counts(self, user: np.ndarray) -> np.ndarray:
        """(U,) int64 events, whole pages of them."""
        uniform = _uniform(self.log_seed, user, np.zeros_like(user), _LENGTH)
        relative = {
            "fixed": np.ones_like,
            "exponential": lambda u: -np.log1p(-u),
            "pareto": lambda u: np.minimum(0.5 / np.sqrt(1 - u), 100),
        }[self.lengths](uniform)
        pages = np.rint(self.events_per_user * relative / self.candidates)
        return np.maximum(pages, 1).astype(np.int64) * self.candidates

    def _favourites(self, user: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Category of each user's interest number ``which``."""
        uniform = _uniform(self.log_seed, user, which, _FAVOURITE)
        return (uniform * self.categories).astype(np.int64)

    def _probability(self, partition: Partition, index: np.ndarray, end: np.ndarray) -> np.ndarray:
        """(R, K) true click probability of the page that begins at row ``end``, for the users at
        place ``index`` of the partition.
        """
        if self.lag:
            there = self._agrees_with_lagged_page(partition, partition.first_row[index], end)
            return 1 / (1 + np.exp(-np.where(there, 1, -1) / self.noise))
        match = np.empty((len(end), self.candidates))
        matches = self._matches if self.similarity == "category" else self._hidden_matches
        chunk = max(1, 4_000_000 // (self.candidates * self.history_needed))
        for begin in range(0, len(end), chunk):
            part = slice(begin, begin + chunk)
            match[part] = matches(partition, partition.first_row[index[part]], end[part])
        if self.similarity != "category":
            return 1 / (1 + np.exp(-(match - self._middle()) / self.noise))
        total = (self.history_needed + 1) / 2  # of the weights
        by_chance, by_interest = total / self.categories, total / (2 * self.interests)
        middle = (math.log1p(by_chance) + math.log1p(by_interest)) / 2
        return 1 / (1 + np.exp(-(np.log1p(match) - middle) / self.noise))

    def _agrees_with_lagged_page(
        self, partition: Partition, first_row: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        """(R, K) bool: whether the page that decides, if there is one, has the category."""
        begin = end - self.lag
        page_RK = np.maximum(begin, 0)[:, None] + np.arange(self.candidates)
        candidate_RK = end[:, None] + np.arange(self.candidates)
        category = partition.events["category"]
        same_RKK = category[candidate_RK][:, :, None] == category[page_RK][:, None, :]
        return same_RKK.any(axis=2) & (begin >= first_row)[:, None]

    def _middle(self) -> float:
        """c_0 of the formula above."""
        if self.similarity == "different":
            return 0.0
        other = 1 / (2 * self.categories)  # share of the events that a topic has
        favourite = other + 1 / (2 * self.interests)
        weights = [TOPIC_WEIGHT * share / (TOPIC_WEIGHT * share + 1 - share)
                   for share in (other, favourite)]  # fmt: skip
        return sum(weights) - 1  # the mean of 2 weight - 1

    def _hidden_matches(
        self, partition: Partition, first_row: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        """(R, K) float64: the mean of c of the formula above."""
        row_RW = end[:, None] - 1 - np.arange(self.history_needed)
        there_RW = row_RW >= first_row[:, None]
        row_RW = np.maximum(row_RW, 0)
        candidate_RK = end[:, None] + np.arange(self.candidates)

        def alike(field: str) -> np.ndarray:
            values = partition.events[field]
            return values[candidate_RK][:, :, None] == values[row_RW][:, None, :]

        there_R1W = there_RW[:, None, :]
        same_topic_RKW = alike("topic") & there_R1W
        same_valence_RKW = alike("valence") & there_R1W
        agree_RKW = same_topic_RKW if self.similarity == "same" else same_valence_RKW

        def weight(events_RKW: np.ndarray) -> np.ndarray:
            of_topic = (events_RKW & same_topic_RKW).sum(axis=2)
            return events_RKW.sum(axis=2) + (TOPIC_WEIGHT - 1) * of_topic

        return 2 * weight(agree_RKW) / weight(there_R1W) - 1

    def _matches(self, partition: Partition, first_row: np.ndarray, end: np.ndarray) -> np.ndarray:
        """(R, K) float64: m of the formula above."""
        row_RW = end[:, None] - 1 - np.arange(self.history_needed)
        # W times the weights are integers: equal matches stay equal when summed
        weight_W = np.arange(self.history_needed, 0, -1)
        weight_RW = np.where(row_RW >= first_row[:, None], weight_W, 0)
        row_RW = np.maximum(row_RW, 0)
        candidate_RK = end[:, None] + np.arange(self.candidates)
        match_RK = np.zeros(candidate_RK.shape, np.int64)
        for field in ("category", "item"):
            ids = partition.events[field]
            same_RKW = ids[candidate_RK][:, :, None] == ids[row_RW][:, None, :]
            match_RK += np.einsum("rkw,rw->rk", same_RKW, weight_RW)
        return match_RK / self.history_needed


def _uniform(seed: int, user: np.ndarray, number: np.ndarray, stream: int) -> np.ndarray:
    """(N,) float64 in [0, 1): random number ``number`` of each user's ``stream``."""
    return (hash64(seed, user, number, stream) >> np.uint64(11)) * 2.0**-53


def _zipf(uniform: np.ndarray, count: int) -> np.ndarray:
    """Ranks 0 .. count - 1, rank i with probability log(1 + 1 / (i + 1)) / log(1 + count)."""
    rank = np.exp(uniform * math.log1p(count)).astype(np.int64) - 1
    return np.minimum(rank, count - 1)  # rounding may end one too high


def _tally(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores, far fewer than candidates, and the positives and negatives of each."""
    scores, place = np.unique(score, return_inverse=True)
    label = label.ravel()
    positives = np.bincount(place.ravel(), weights=label)
    return scores, positives, np.bincount(place.ravel(), weights=~label)


def _auc(score: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counted half; scores may repeat."""
    _, place = np.unique(score, return_inverse=True)
    positives = np.bincount(place, weights=positives)
    negatives = np.bincount(place, weights=negatives)
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / (positives.sum() * negatives.sum()))
