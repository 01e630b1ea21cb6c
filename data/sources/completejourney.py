"""A year of real grocery purchases: 2,469 households, 1.47 million lines, from 84.51°.

Shapes: N events, M baskets, P positives.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.sampling import Refusal, add_negatives, contains, hash64, with_negatives
from data.source import Order, Partition, Requests, Split
from data.sources.completejourney_context import (
    TRAINING_WEEKS,
    Context,
    context_of,
    read_table,
    words,
)

LAST_WEEK: dict[Split, int] = {"train": TRAINING_WEEKS, "val": 48, "test": 53}
MIN_HISTORY = 50
POSITIVES_PER_REQUEST = 2
NEGATIVES_PER_POSITIVE = 2
ROWS_PER_FRAME = 250_000
# draws of negatives count their attempts from 0; the choice of positives must not share its draws
_CHOICE_OF_POSITIVES = 2**32

Side = Literal["department", "brand", "manufacturer", "product_category", "package_size"]
Task = Literal["all", "new", "repeat"]


@dataclass(frozen=True, kw_only=True)
class CompleteJourney:
    """User = household, item = product, category = product type.

    A request is a basket whose household bought at least 50 lines before. Up to 2 of its lines
    are positives, each with 2 negatives from products that are not in the basket. The history is
    strictly earlier lines: baskets of one household at the same second do not see each other.
    Weeks 1-44 train, 45-48 validate, 49-53 test.

    ``task`` says which lines may be positives, and from where negatives come:

    * ``all``: any line; negatives from all products by their lines in the training weeks. Half of
      the positives in the test weeks are in the history, few negatives are: finding the candidate
      itself there is most of the task.
    * ``new``: products that the household never bought before; negatives from products that it
      never bought before either. No candidate is in the history, so only what is like it there
      helps. What all buy again and again is rarely new: so negatives are drawn by the training
      weeks' lines that were new to a household with 50 lines, as positives are. Drawn by all lines
      they would be more popular than the positives, which is a shortcut.
    * ``repeat``: products that it bought before; each negative is the product of one of its earlier
      lines, all equally likely. Every candidate is in the history, and the more often the household
      bought a product, the more often it is a negative: neither being there nor being frequent
      there is a shortcut. What is left is when: what was bought of late, what is due again.
    """

    side: tuple[Side, ...] = ()
    """Product attributes beside the type, which is the category. The product category lies between
    department and type."""
    request_context: tuple[Context, ...] = ()
    """What is known of a basket beside the household: its store, the hour of its week (0 is Monday
    0h), and of the third of households that answered, who they are."""
    task: Task = "all"
    """Which lines of a basket are to be predicted: all, new products or repeated ones."""

    name: ClassVar[str] = "completejourney"
    min_events: ClassVar[int] = MIN_HISTORY + 1
    order: ClassVar[Order] = "time"

    def __post_init__(self) -> None:
        # reasons -> baskets that are no requests; no option, so not a field
        object.__setattr__(self, "_left_out", Counter())
        if len(set(self.request_context)) < len(self.request_context):
            raise ValueError(
                f"request_context names columns twice: {', '.join(self.request_context)}. "
                "Name each once."
            )

    @property
    def carry(self) -> tuple[str, ...]:
        carried = ("basket", "week", "new")
        return (*carried, "store") if "store" in self.request_context else carried

    @property
    def context(self) -> dict[str, int]:
        return {name: len(words(name)) for name in self.request_context}

    def context_words(self) -> dict[str, pl.Series]:
        """Values of the context columns, by id."""
        return {name: words(name) for name in self.request_context}

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """The transactions by (time, basket), with the attributes of their products.

        Raises:
            InputError: the package that holds the log is not installed.
        """
        self._left_out.clear()
        products = read_table("products").select(
            "product_id",
            category=pl.col("product_type"),
            department="department",
            brand="brand",
            manufacturer="manufacturer_id",
            product_category="product_category",
            package_size="package_size",
        )
        lines = read_table("transactions").sort(
            "transaction_timestamp", "basket_id", maintain_order=True
        )
        known = pl.int_range(pl.len()).over("household_id") >= MIN_HISTORY
        lines = lines.with_columns(
            new=pl.struct("household_id", "product_id").is_first_distinct() & known
        )
        for frame in lines.iter_slices(ROWS_PER_FRAME):
            described = frame.join(products, on="product_id", how="left", maintain_order="left")
            yield described.select(
                pl.col("household_id").alias("user"),
                pl.col("product_id").alias("item"),
                pl.col("transaction_timestamp").dt.epoch("s").alias("time"),
                pl.col("category").fill_null("unknown"),
                *self.side,
                pl.col("basket_id").alias("basket"),
                "week",
                "new",
                *(pl.col("store_id").alias(name) for name in self.carry if name == "store"),
            )

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        """Purchases of the training weeks; of the task new those that may be its positives."""
        training = pl.col("week") <= LAST_WEEK["train"]
        return training & pl.col("new") if self.task == "new" else training

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """One request for each basket with enough history before it and something to predict."""
        baskets = _Baskets.of(partition)
        earlier = _Earlier.of(partition, baskets)
        wanted = baskets.eligible[baskets.of_line]
        if self.task != "all":
            wanted &= earlier.bought != (self.task == "new")
            wanted &= self._enough_negatives(partition, baskets, earlier, wanted, popularity)
        lines = _choose_positives(partition, baskets, wanted, seed)
        positives = _positive_requests(partition, baskets, lines)
        positives.context.update(self._context(partition, positives, baskets, lines))
        if self.task == "repeat":
            drawn = _draw_earlier(partition, baskets, earlier, lines, seed)
            requests = with_negatives(positives, drawn)
        else:
            requests = add_negatives(
                positives,
                partition,
                popularity,
                negatives=NEGATIVES_PER_POSITIVE,
                seed=seed,
                slot=_numbers(partition, lines),
                group=baskets.of_line[lines],
                excluded_group=baskets.of_line,
                excluded_item=partition.events["item"],
                refused=earlier.of_lines(baskets, lines) if self.task == "new" else None,
            )
        week = partition.events["week"][baskets.first_line[np.unique(baskets.of_line[lines])]]
        bounds = itertools.pairwise([0, *LAST_WEEK.values()])
        return {
            split: requests.select((week > after) & (week <= last))
            for split, (after, last) in zip(LAST_WEEK, bounds, strict=True)
        }

    def _enough_negatives(
        self,
        partition: Partition,
        baskets: _Baskets,
        earlier: _Earlier,
        wanted: np.ndarray,
        popularity: np.ndarray,
    ) -> np.ndarray:
        """(N,) bool: the line's basket can have different negatives. Counts those that are no
        requests.
        """
        count = len(baskets.first_line)
        lines = np.bincount(baskets.of_line[wanted], minlength=count)
        needed = NEGATIVES_PER_POSITIVE * np.minimum(lines, POSITIVES_PER_REQUEST)
        if self.task == "repeat":
            possible = earlier.count_items(partition, baskets) - lines
        else:
            popular = popularity > 0
            counts = popular[partition.events["item"]]
            taken = earlier.count_items(partition, baskets, counts)
            taken += np.bincount(baskets.of_line[wanted & counts], minlength=count)
            possible = np.count_nonzero(popular) - taken
        enough = possible >= needed
        nothing = baskets.eligible & (lines == 0)
        self._left_out["nothing to predict"] += int(nothing.sum())
        self._left_out["too few negatives"] += int((baskets.eligible & ~nothing & ~enough).sum())
        return enough[baskets.of_line]

    def _context(
        self, partition: Partition, positives: Requests, baskets: _Baskets, lines: np.ndarray
    ) -> dict[str, np.ndarray]:
        chosen = np.unique(baskets.of_line[lines])
        store = partition.events.get("store")
        return context_of(
            self.request_context,
            household=partition.original.gather(baskets.user_index[chosen]),
            time=positives.time,
            store=None if store is None else store[baskets.first_line[chosen]],
        )

    def left_out(self) -> dict[str, int]:
        """Baskets with enough history that are no requests of the task, by reason."""
        return {reason: count for reason, count in self._left_out.items() if count}

    def tallies(self) -> dict[str, int]:
        """Baskets that were left out here."""
        return dict(self._left_out)

    def add_tallies(self, tallies: dict[str, int]) -> None:
        """Adds those that were left out elsewhere."""
        self._left_out.update(tallies)

    def best_auc(self) -> None:
        return None


@dataclass(frozen=True)
class _Baskets:
    """M baskets of a partition, in the order of its events."""

    of_line: np.ndarray
    """(N,) int64 number of the basket that each event is a line of."""
    first_line: np.ndarray
    """(M,) int64."""
    history_end: np.ndarray
    """(M,) int64: first line of the household at the basket's time, which is another basket's
    where two of them carry the same time."""
    user_index: np.ndarray
    """(M,) int64: place of the household in the partition."""
    eligible: np.ndarray
    """(M,) bool: enough history."""

    @classmethod
    def of(cls, partition: Partition) -> _Baskets:
        user = partition.user_index()
        new_basket = _changes(user) | _changes(partition.events["basket"])
        new_time = _changes(user) | _changes(partition.events["time"])
        first_line = np.flatnonzero(new_basket)
        history_end = np.flatnonzero(new_time)[np.cumsum(new_time) - 1][first_line]
        user_index = user[first_line]
        return cls(
            of_line=np.cumsum(new_basket) - 1,
            first_line=first_line,
            history_end=history_end,
            user_index=user_index,
            eligible=history_end - partition.first_row[user_index] >= MIN_HISTORY,
        )


@dataclass(frozen=True)
class _Earlier:
    """What each household bought before each line: D different (household, item) pairs."""

    items: int
    """Above all item ids."""
    pair: np.ndarray
    """(D,) int64, household * items + item, ascending."""
    first: np.ndarray
    """(D,) int64: first line of the pair."""
    bought: np.ndarray
    """(N,) bool: the household bought the line's item before the basket."""

    @classmethod
    def of(cls, partition: Partition, baskets: _Baskets) -> _Earlier:
        item = partition.events["item"]
        items = int(item.max(initial=0)) + 1
        pair, first, of_line = np.unique(
            partition.user_index() * items + item, return_index=True, return_inverse=True
        )
        return cls(items, pair, first, first[of_line] < baskets.history_end[baskets.of_line])

    def of_lines(self, baskets: _Baskets, lines: np.ndarray) -> Refusal:
        """(places in ``lines``, items) -> bool: the line's household bought the item before."""
        household = baskets.user_index[baskets.of_line[lines]]
        end = baskets.history_end[baskets.of_line[lines]]

        def refused(places: np.ndarray, items: np.ndarray) -> np.ndarray:
            pair = household[places] * self.items + items
            at = np.minimum(np.searchsorted(self.pair, pair), len(self.pair) - 1)
            found = (self.pair[at] == pair) & (items < self.items)
            return found & (self.first[at] < end[places])

        return refused

    def count_items(
        self, partition: Partition, baskets: _Baskets, counts: np.ndarray | None = None
    ) -> np.ndarray:
        """(M,) different items that the household bought before each basket; ``counts``: (N,)
        bool, of which lines.
        """
        is_first = np.zeros(len(baskets.of_line), np.int64)
        is_first[self.first] = True if counts is None else counts[self.first]
        up_to = np.append(0, np.cumsum(is_first))
        return up_to[baskets.history_end] - up_to[partition.first_row[baskets.user_index]]


def _draw_earlier(
    partition: Partition, baskets: _Baskets, earlier: _Earlier, lines: np.ndarray, seed: int
) -> np.ndarray:
    """(P, NEGATIVES_PER_POSITIVE) items of earlier lines of each line's household, all lines
    equally likely but those of items in the basket.
    """
    line = np.repeat(lines, NEGATIVES_PER_POSITIVE)
    slot = np.repeat(_numbers(partition, lines) * NEGATIVES_PER_POSITIVE, NEGATIVES_PER_POSITIVE)
    slot += np.tile(np.arange(NEGATIVES_PER_POSITIVE), len(lines))
    basket = baskets.of_line[line]
    household = baskets.user_index[basket]
    begin, end = partition.first_row[household], baskets.history_end[basket]
    item = partition.events["item"]
    in_basket = np.sort(baskets.of_line * earlier.items + item)
    drawn = np.empty(len(line), np.int32)
    left, attempt = np.arange(len(line)), 0
    # ends: every basket has an earlier line of another item
    while len(left):
        luck = hash64(seed, partition.user[household[left]], slot[left], attempt)
        place = luck % (end - begin)[left].astype(np.uint64)
        drawn[left] = item[begin[left] + place.astype(np.int64)]
        left = left[contains(in_basket, basket[left] * earlier.items + drawn[left])]
        attempt += 1
    return drawn.reshape(-1, NEGATIVES_PER_POSITIVE)


def _changes(values: np.ndarray) -> np.ndarray:
    """(N,) bool: the value differs from the one before it; True for the first."""
    return np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]


def _numbers(partition: Partition, lines: np.ndarray) -> np.ndarray:
    """Number of each line among its household's, the same in every partitioning."""
    return lines - partition.first_row[partition.user_index()[lines]]


def _choose_positives(
    partition: Partition, baskets: _Baskets, wanted: np.ndarray, seed: int
) -> np.ndarray:
    """(P,) int64 lines, up to POSITIVES_PER_REQUEST of each basket, in its order, of those that
    are ``wanted``, (N,) bool.
    """
    lines = np.flatnonzero(wanted)
    user = partition.user[partition.user_index()[lines]]
    luck = hash64(seed, user, _numbers(partition, lines), _CHOICE_OF_POSITIVES)
    lines = lines[np.lexsort((luck, baskets.of_line[lines]))]
    # sorting within baskets leaves each basket at its place, so this is its first sorted line
    first = np.flatnonzero(_changes(baskets.of_line[lines]))
    rank = np.arange(len(lines)) - np.repeat(first, np.diff(first, append=len(lines)))
    return lines[rank < POSITIVES_PER_REQUEST]


def _positive_requests(partition: Partition, baskets: _Baskets, lines: np.ndarray) -> Requests:
    """Requests of the baskets of the chosen ``lines``, which are their candidates."""
    chosen, first = np.unique(baskets.of_line[lines], return_index=True)
    return Requests(
        user=partition.user[baskets.user_index[chosen]],
        end=baskets.history_end[chosen],
        time=partition.events["time"][baskets.first_line[chosen]],
        offsets=np.append(first, len(lines)),
        candidates=partition.events["item"][lines],
        labels=np.ones(len(lines), np.int8),
    )
