"""The frappe source against plain Python over the raw lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from data.prepare import prepare
from data.sources.frappe import Frappe
from data.store import EventStore
from tests.data.flat_logs import check_columns, frappe_rows, split_by_hash, write_frappe
from tests.data.refusals import expect_refused

NAMES = [
    *("user_id", "item_id", "daytime", "weekday", "is_weekend"),
    *("homework", "cost", "weather", "country", "city"),
]
ROWS = frappe_rows(300)
LABELS = [int(cells[0] == "1") for cells in ROWS]
COLUMNS = {name: [cells[place] for cells in ROWS] for place, name in enumerate(NAMES, start=1)}


def files(folder: Path) -> tuple[Path, ...]:
    """Train, validation and test of 150, 90 and 60 rows."""
    parts = {"train": ROWS[:150], "validation": ROWS[150:240], "test": ROWS[240:]}
    return tuple(
        write_frappe(folder / f"frappe.{name}.libfm", rows) for name, rows in parts.items()
    )


def test_three_files_are_the_published_split(tmp_path: Path) -> None:
    prepare(Frappe(path=files(tmp_path)), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    check_columns(store, LABELS, COLUMNS, [0] * 150 + [1] * 90 + [2] * 60, min_count=1)


def test_names_say_which_file_is_which_split(tmp_path: Path) -> None:
    train, validation, test = files(tmp_path)
    info = prepare(Frappe(path=(test, train, validation)), tmp_path / "store")
    assert info.requests == {"train": 150, "val": 90, "test": 60}


def test_two_of_the_files_are_split_at_random(tmp_path: Path) -> None:
    """The training part is not everywhere: the other two are 30 % of the log."""
    prepare(Frappe(path=files(tmp_path)[1:], min_count=2), tmp_path / "store", seed=3)
    store = EventStore.open(tmp_path / "store")
    splits = [split_by_hash(row, 3, (7, 2, 1)) for row in range(150)]
    columns = {name: values[150:] for name, values in COLUMNS.items()}
    check_columns(store, LABELS[150:], columns, splits, min_count=2)


def test_three_files_can_be_split_at_random(tmp_path: Path) -> None:
    source = Frappe(path=files(tmp_path), split="random", split_ratio=(1, 1, 1))
    prepare(source, tmp_path / "store")
    splits = [split_by_hash(row, 0, (1, 1, 1)) for row in range(300)]
    check_columns(EventStore.open(tmp_path / "store"), LABELS, COLUMNS, splits, min_count=1)


def test_a_published_split_needs_all_three_files_and_no_ratio(tmp_path: Path) -> None:
    three = files(tmp_path)
    with pytest.raises(InputError, match=r"given are frappe\.train.*--split random"):
        Frappe(path=three[:2], split="published")
    with pytest.raises(InputError, match=r"Leave it out, or add --split random"):
        Frappe(path=three, split_ratio=(1, 1, 1))


@pytest.mark.parametrize(
    "line",
    [
        "1 1:1 2:1",
        "1 " + " ".join(f"{i}:1" for i in range(11)),
        "2 " + " ".join(f"{i}:1" for i in range(10)),
        "1 " + " ".join(f"{i}:0.5" for i in range(10)),
        "1 x:1 " + " ".join(f"{i}:1" for i in range(9)),
        "1 " + " ".join(f"{i}{10**9}:1" for i in range(1, 11)),
        "1\xff " + " ".join(f"{i}:1" for i in range(10)),
    ],
    ids=["few cells", "many cells", "label", "value", "id", "large id", "bytes"],
)
def test_a_line_of_another_format_is_named(tmp_path: Path, out: Path, line: str) -> None:
    file = write_frappe(tmp_path / "part.libfm", ROWS[:5])
    file.write_bytes(file.read_bytes() + line.encode("latin-1") + b"\n" + file.read_bytes())
    expect_refused(Frappe(path=(file,)), out, "part.libfm, line 6", "10 cells NUMBER:1", "Repair")


@pytest.mark.parametrize("cut", [2, 3, 30])
def test_a_cut_last_line(tmp_path: Path, out: Path, cut: int) -> None:
    file = write_frappe(tmp_path / "part.libfm", ROWS[:51])
    file.write_bytes(file.read_bytes()[:-cut])
    expect_refused(Frappe(path=(file,)), out, "line 51", "cut", "--truncated-line skip")
    info = prepare(Frappe(path=(file,), truncated_line="skip"), tmp_path / "kept")
    assert sum(info.requests.values()) == 50


def test_missing_and_empty_files(tmp_path: Path, out: Path) -> None:
    expect_refused(Frappe(path=(tmp_path / "no.libfm",)), out, "no.libfm", "libfm file")
    (tmp_path / "empty.libfm").touch()
    expect_refused(Frappe(path=(tmp_path / "empty.libfm",)), out, "empty.libfm is empty")
    with pytest.raises(InputError, match="names no file"):
        Frappe(path=())
