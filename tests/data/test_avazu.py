"""The avazu source against plain Python over the raw lines."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path

import pytest

from data.prepare import prepare
from data.sources.avazu import Avazu
from data.store import EventStore
from tests.data.flat_logs import (
    AVAZU_HEADER,
    avazu_rows,
    check_columns,
    split_by_hash,
    write_avazu,
)

ROWS = avazu_rows(1000)
LABELS = [int(cells["click"]) for cells in ROWS]


def columns_of(rows: list[dict[str, str]]) -> dict[str, list[str | None]]:
    names = AVAZU_HEADER.split(",")[3:]
    columns: dict[str, list[str | None]] = {
        name: [cells[name] or None for cells in rows] for name in names
    }
    times = [
        datetime.datetime(2014, int(hour[2:4]), int(hour[4:6]), int(hour[6:]))
        for hour in (cells["hour"] for cells in rows)
    ]
    columns["hour_of_day"] = [str(time.hour) for time in times]
    columns["weekday"] = [str(time.isoweekday() - 1) for time in times]
    columns["weekend"] = [str(int(time.isoweekday() > 5)) for time in times]
    return columns


@pytest.mark.parametrize(
    ("preparation", "ratio", "min_count"), [("x1", (7, 2, 1), 1), ("x4", (8, 1, 1), 2)]
)
def test_a_random_split(tmp_path: Path, preparation: str, ratio: tuple, min_count: int) -> None:
    file = write_avazu(tmp_path / "train.csv", ROWS)
    info = prepare(Avazu(path=file, preparation=preparation), tmp_path / "store", partitions=2)
    assert info.numbers == ()
    splits = [split_by_hash(row, 0, ratio) for row in range(len(ROWS))]
    store = EventStore.open(tmp_path / "store")
    check_columns(store, LABELS, columns_of(ROWS), splits, min_count)


def test_a_temporal_split_is_of_whole_hours(tmp_path: Path) -> None:
    file = tmp_path / "train.csv.gz"
    plain = write_avazu(tmp_path / "train.csv", ROWS)
    file.write_bytes(gzip.compress(plain.read_bytes()))
    source = Avazu(path=file, split="temporal", split_ratio=(33, 33, 34))
    prepare(source, tmp_path / "store")
    # hours have ten rows: the one that begins at row 330 or 660 is the first of its split
    splits = [0] * 330 + [1] * 330 + [2] * 340
    store = EventStore.open(tmp_path / "store")
    check_columns(store, LABELS, columns_of(ROWS), splits, min_count=2)


def test_a_temporal_split_takes_rows_in_any_order(tmp_path: Path) -> None:
    rows = ROWS[::-1]
    file = write_avazu(tmp_path / "train.csv", rows)
    prepare(Avazu(path=file, split="temporal"), tmp_path / "store")
    splits = [2] * 100 + [1] * 100 + [0] * 800
    store = EventStore.open(tmp_path / "store")
    check_columns(store, LABELS[::-1], columns_of(rows), splits, min_count=2)


def test_an_hour_is_named_by_its_line_if_it_is_none(tmp_path: Path, out: Path) -> None:
    rows = [dict(cells) for cells in ROWS[:20]]
    for wrong in ("14103300", "141021", ""):
        rows[6]["hour"] = wrong
        file = write_avazu(tmp_path / "train.csv", rows)
        with pytest.raises(ValueError, match=r"line 8, column hour: '.*YYMMDDHH"):
            prepare(Avazu(path=file), out)
