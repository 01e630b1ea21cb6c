"""Avazu's log of mobile advertisements from Kaggle: ten days of clicks, 22 columns of ids a row.

No histories: for models of feature crossing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from data.errors import InputError
from data.flat_source import FlatSource, Preparation, ordered_split, random_split
from data.sources.delimited import first_cells, read_batches
from data.sources.raw_rows import (
    RawFormat,
    bad_cell,
    hex_text,
    may_be_hex,
    read_rows,
    refuse_empty,
)

HEXADECIMAL = (
    *("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model"),
)
COLUMNS = (
    *("C1", "banner_pos", *HEXADECIMAL, "device_type", "device_conn_type"),
    *(f"C{number}" for number in range(14, 22)),
)
INTEGERS = tuple(name for name in COLUMNS if name not in HEXADECIMAL)
OF_THE_HOUR = ("hour_of_day", "weekday", "weekend")
WHAT = (
    "train.csv of Kaggle's Avazu challenge has a header line (id,click,hour,C1,banner_pos, ...), "
    "click is 0 or 1, hour is YYMMDDHH, ids are integers or 8 hexadecimal digits"
)
LAYOUT = RawFormat(
    label="click",
    integers=("hour", *INTEGERS),
    hexadecimal=HEXADECIMAL,
    names=None,
    delimiter=",",
    what=WHAT,
)


@dataclass(frozen=True, kw_only=True)
class Avazu(FlatSource):
    """Kaggle's train.csv as published, with its header line, whole or in part, unpacked or .gz.
    The column id, another one in each row, is left out; the hour YYMMDDHH becomes hour of day (0
    to 23), weekday (0 is Monday) and weekend, since no later hour comes back.

    ``x1``: each id that training has is kept, split 7:2:1. ``x4``: ids of a single training row are
    unknown, split 8:1:1. Ids are counted in the training rows alone.
    """

    path: Path
    """train.csv or train.csv.gz."""
    preparation: Preparation = "x4"
    """x1 has min_count 1, split 7 2 1; x4 has min_count 2, split 8 1 1."""
    split: Literal["random", "temporal"] = "random"
    """random goes by a hash of the row's number and the seed. temporal has the first hours train
    and the last ones test."""

    name: ClassVar[str] = "avazu"

    @property
    def columns(self) -> tuple[str, ...]:
        return (*COLUMNS, *OF_THE_HOUR)

    @property
    def default_ratio(self) -> tuple[int, int, int]:
        return (7, 2, 1) if self.preparation == "x1" else (8, 1, 1)

    @property
    def default_min_count(self) -> int:
        return 1 if self.preparation == "x1" else 2

    def row_frames(self, seed: int) -> Iterator[pl.DataFrame]:
        self._check_header()
        of_hour = self._splits_of_hours() if self.split == "temporal" else {}
        first = 0
        for frame in read_rows(self.path, LAYOUT, self.truncated_line):
            hours, place = np.unique(frame["hour"].fill_null(-1).to_numpy(), return_inverse=True)
            times = [_time_of(hour, self.path) for hour in hours.tolist()]
            columns = {
                "hour_of_day": [time.hour for time in times],
                "weekday": [time.weekday() for time in times],
                "weekend": [int(time.weekday() >= 5) for time in times],
            }
            if self.split == "random":
                split = random_split(first, frame.height, self.ratio, seed)
            else:
                split = np.array([of_hour[hour] for hour in hours.tolist()], np.int8)[place]
            first += frame.height
            yield frame.rename({"click": "label"}).with_columns(
                *(pl.Series(n, np.array(v, np.int32)[place]) for n, v in columns.items()),
                split=pl.Series(split),
            )

    def original(self, column: str, values: pl.Series) -> pl.Series:
        return hex_text(values) if column in HEXADECIMAL else values

    def _check_header(self) -> None:
        refuse_empty(self.path, LAYOUT)
        found = first_cells(self.path)
        if missing := [n for n in ("click", "hour", *COLUMNS) if n not in found]:
            raise InputError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; its first line is "
                f"{found[:30]}. Give the file as published: {WHAT}."
            )

    def _splits_of_hours(self) -> dict[int, int]:
        """Split of each hour: that of its first row, were the rows in order of time."""
        rows: Counter[int] = Counter()
        for batch in read_batches(
            self.path,
            ["hour"],
            types={"hour": pa.int32()},
            truncated_line=self.truncated_line,
            quotes=False,
            last_cell=may_be_hex,
            way_out=f"Repair the line: {WHAT}.",
        ):
            hours, counts = np.unique(
                batch.column("hour").fill_null(-1).to_numpy(), return_counts=True
            )
            rows.update(dict(zip(hours.tolist(), counts.tolist(), strict=True)))
        counts = np.array([rows[hour] for hour in sorted(rows)], np.int64)
        splits = ordered_split(np.cumsum(counts) - counts, int(counts.sum()), self.ratio)
        return dict(zip(sorted(rows), splits.tolist(), strict=True))


def _time_of(hour: int, file: Path) -> datetime:
    time = _parse_hour(f"{hour:08d}")
    if time is None:
        wanted = "an hour YYMMDDHH such as 14102100"
        raise InputError(bad_cell(file, LAYOUT, "hour", lambda c: not _parse_hour(c), wanted))
    return time


def _parse_hour(cell: str) -> datetime | None:
    try:
        return datetime.strptime(cell.zfill(8), "%y%m%d%H")
    except ValueError:
        return None
