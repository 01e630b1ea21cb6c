"""Tmall (Tianchi dataset 42, user_log_format1.csv): half a year of clicks, stamped by the day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl
import pyarrow as pa

from data.sources.delimited import first_cells, read_delimited
from data.sources.last_clicks import LastClicks

COLUMNS = ("user", "item", "category", "seller", "brand", "day", "action")
CLICK = 0

Side = Literal["seller", "brand"]


@dataclass(frozen=True, kw_only=True)
class TmallSource(LastClicks):
    """Tmall's user log, with DARE's split; of the actions only clicks are kept.

    An item has its last category in the log; DARE's code first sorts the log by user and day, which
    matters for items of several categories.
    """

    path: Path
    """user_log_format1.csv, plain or gzipped, with or without its header line."""
    side: tuple[Side, ...] = ()
    """Item attributes beside the category; DARE has none."""

    name: ClassVar[str] = "tmall"

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """In file order; time is the day, MMDD. Rows whose day is not four digits are dropped."""
        kept = ("user", "item", "category", *self.side)
        types = dict.fromkeys(COLUMNS, pa.int64()) | {"day": pa.large_string()}
        frames = read_delimited(
            self.path,
            [*kept, "day", "action"],
            names=COLUMNS,
            skip_lines=0 if first_cells(self.path)[0].isdigit() else 1,
            types=types,
            truncated_line=self.truncated_line,
        )
        for frame in frames:
            clicks = (pl.col("action") == CLICK) & pl.col("day").str.contains(r"^\d{4}$")
            yield frame.filter(clicks).select(*kept, time=pl.col("day").cast(pl.Int64))
