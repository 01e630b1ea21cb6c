"""Taobao UserBehavior (Tianchi dataset 649): clicks of nine days, one line each, no header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl
import pyarrow as pa

from data.sources.delimited import read_delimited
from data.sources.last_clicks import LastClicks

COLUMNS = ("user", "item", "category", "behaviour", "time")


@dataclass(frozen=True, kw_only=True)
class TaobaoSource(LastClicks):
    """Taobao UserBehavior, with DARE's split; of the behaviours only page views (pv) are kept."""

    path: Path
    """UserBehavior.csv, plain or gzipped."""

    name: ClassVar[str] = "taobao"

    def event_frames(self) -> Iterator[pl.DataFrame]:
        """In file order. With ``order="file"`` the timestamp is not even read."""
        columns = COLUMNS if self.order == "time" else COLUMNS[:-1]
        types = dict.fromkeys(COLUMNS, pa.int64()) | {"behaviour": pa.large_string()}
        frames = read_delimited(
            self.path, columns, names=COLUMNS, types=types, truncated_line=self.truncated_line
        )
        for frame in frames:
            if self.order == "file":
                frame = frame.with_columns(time=pl.lit(0, pl.Int64))
            yield frame.filter(pl.col("behaviour") == "pv").drop("behaviour")
