"""Each wrong table ends with one message that says what was given and what helps, and leaves
nothing behind."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path

import pytest

from data.errors import InputError
from data.flat_source import FlatSource
from data.prepare import prepare
from data.sources.avazu import Avazu
from data.sources.criteo import Criteo
from data.sources.frappe import Frappe
from tests.data.flat_logs import (
    avazu_rows,
    criteo_rows,
    frappe_rows,
    write_avazu,
    write_criteo,
    write_frappe,
)
from tests.data.refusals import expect_refused

ROWS = criteo_rows(30)


def criteo(tmp_path: Path, row: int, cell: int, text: str, **options: object) -> Criteo:
    """The log with one cell changed."""
    rows = [list(cells) for cells in ROWS]
    rows[row][cell] = text
    return Criteo(path=(write_criteo(tmp_path / "train.txt", rows),), **options)


def test_missing_file(tmp_path: Path, out: Path) -> None:
    for split in ("random", "temporal"):
        source = Criteo(path=(tmp_path / "no.txt",), split=split)
        expect_refused(source, out, "no.txt", "plain or .gz")
        source = Avazu(path=tmp_path / "no.csv", split=split)
        expect_refused(source, out, "no.csv", "plain or .gz")


def test_a_file_that_is_missing_among_others(tmp_path: Path, out: Path) -> None:
    file = write_criteo(tmp_path / "day_0", ROWS)
    expect_refused(Criteo(path=(file, tmp_path / "day_1")), out, "day_1 is no file")


@pytest.mark.parametrize("packed", [False, True])
def test_empty_file(tmp_path: Path, out: Path, packed: bool) -> None:
    file = tmp_path / ("train.gz" if packed else "train.txt")
    file.write_bytes(gzip.compress(b"") if packed else b"")
    expect_refused(Criteo(path=(file,)), out, file.name, "empty", "13 integers")
    expect_refused(Avazu(path=file), out, file.name, "empty", "header line")


def test_a_header_without_rows(tmp_path: Path, out: Path) -> None:
    file = write_avazu(tmp_path / "train.csv", [])
    expect_refused(Avazu(path=file), out, "train.csv", "empty")


@pytest.mark.parametrize("change", [lambda cells: cells[:-1], lambda cells: [*cells, "1"]])
def test_wrong_number_of_columns(tmp_path: Path, out: Path, change) -> None:
    rows = [change(cells) if row == 4 else cells for row, cells in enumerate(ROWS)]
    source = Criteo(path=(write_criteo(tmp_path / "train.txt", rows),))
    found = len(rows[4])
    expect_refused(source, out, "train.txt, line 5", f"{found} columns where 40 are expected")


def test_test_rows_without_labels(tmp_path: Path, out: Path) -> None:
    file = write_criteo(tmp_path / "test.txt", [cells[1:] for cells in ROWS])
    expect_refused(Criteo(path=(file,)), out, "line 1", "39 columns where 40 are expected")


def test_avazu_without_a_click(tmp_path: Path, out: Path) -> None:
    file = write_avazu(tmp_path / "test.csv", avazu_rows(5))
    file.write_text(file.read_text().replace("click,", "", 1))
    expect_refused(Avazu(path=file), out, "no column 'click'", "'hour'", "train.csv of Kaggle's")


@pytest.mark.parametrize("label", ["2", "-1", ""])
def test_label_that_is_neither_0_nor_1(tmp_path: Path, out: Path, label: str) -> None:
    source = criteo(tmp_path, 8, 0, label)
    expect_refused(source, out, "line 9, column label", repr(label), "not 0 or 1", "Repair")


@pytest.mark.parametrize("cell", ["1.5", "x", "99999999999"])
def test_number_that_is_no_integer(tmp_path: Path, out: Path, cell: str) -> None:
    source = criteo(tmp_path, 3, 2, cell)
    expect_refused(source, out, "line 4, column 3", repr(cell), "int32", "13 integers")


@pytest.mark.parametrize(
    "cell", ["1a2b3c4g", "1a2b3c4", "1a2b3c4d5", "+1a2b3c4", "  1a2b3c", "é1a2b3c"]
)
def test_id_that_is_not_hexadecimal(tmp_path: Path, out: Path, cell: str) -> None:
    source = criteo(tmp_path, 3, 20, cell)
    expect_refused(source, out, "line 4, column C7", repr(cell), "8 hexadecimal digits")
    rows = avazu_rows(9)
    rows[2]["app_id"] = cell
    source = Avazu(path=write_avazu(tmp_path / "train.csv", rows))
    expect_refused(source, out, "line 4, column app_id", repr(cell), "8 hexadecimal digits")


def test_a_cut_last_line_is_named(tmp_path: Path, out: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", [*ROWS, ROWS[0]])
    file.write_text(file.read_text()[:-40])
    expect_refused(Criteo(path=(file,)), out, "line 31", "last line", "cut", "--truncated-line")


@pytest.mark.parametrize("split", ["random", "temporal"])
def test_cut_gzip(tmp_path: Path, out: Path, split: str) -> None:
    rows = criteo_rows(400)
    whole = gzip.compress(write_criteo(tmp_path / "plain", rows).read_bytes())
    (tmp_path / "train.gz").write_bytes(whole[: len(whole) // 2])
    source = Criteo(path=(tmp_path / "train.gz",), split=split)
    expect_refused(source, out, "train.gz")
    whole = gzip.compress(write_avazu(tmp_path / "plain", avazu_rows(400)).read_bytes())
    (tmp_path / "avazu.gz").write_bytes(whole[: len(whole) // 2])
    expect_refused(Avazu(path=tmp_path / "avazu.gz", split=split), out, "avazu.gz")
    whole = gzip.compress(write_frappe(tmp_path / "plain", frappe_rows(400)).read_bytes())
    (tmp_path / "frappe.gz").write_bytes(whole[: len(whole) // 2])
    expect_refused(Frappe(path=(tmp_path / "frappe.gz",)), out, "frappe.gz", "to its end")


@pytest.mark.parametrize("label", ["0", "1"])
def test_a_split_of_one_class(tmp_path: Path, out: Path, label: str) -> None:
    rows = [[label if row >= 24 else cells[0], *cells[1:]] for row, cells in enumerate(ROWS)]
    file = write_criteo(tmp_path / "train.txt", rows)
    source = Criteo(path=(file,), split="temporal", preparation="x4")
    expect_refused(source, out, "The val split has 3 rows", "larger part", "--split-ratio")


def test_a_log_too_short_for_three_splits(tmp_path: Path, out: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", ROWS[:1])
    expect_refused(Criteo(path=(file,)), out, "split has 1 rows", "every split needs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_ratio": (8, 0, 1)}, "split_ratio is 8 0 1: .* at least 1"),
        ({"split_ratio": (8, 1, -1)}, "split_ratio is 8 1 -1"),
        ({"min_count": 0}, "min_count is 0; give at least 1"),
        ({"training_share": 0.0}, "training_share is 0.0; give a share above 0"),
        ({"training_share": math.nan}, "training_share is nan; give a share above 0"),
        ({"hash_buckets": 0}, "hash_buckets is 0; give a number from 1"),
        ({"hash_buckets": 2**31}, "hash_buckets is 2147483648"),
        ({"hash_buckets": 5, "min_count": 2}, "exclude each other"),
    ],
)
def test_options_are_checked_at_once(tmp_path: Path, options: dict, message: str) -> None:
    for make in (
        lambda: Criteo(path=(tmp_path,), **options),
        lambda: Avazu(path=tmp_path, **options),
        lambda: Frappe(path=(tmp_path,), **options),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_criteo_s_files_are_counted_and_in_order(tmp_path: Path) -> None:
    days = tuple(tmp_path / f"day_{day}.gz" for day in (0, 1, 10, 2))
    with pytest.raises(InputError, match=r"day_2\.gz comes after day_10\.gz"):
        Criteo(path=days, split="temporal")
    Criteo(path=days)  # order says nothing to a random split
    with pytest.raises(InputError, match="7 2 1 is of 10 files, but 3 are given"):
        Criteo(path=days[:3], split="files")
    with pytest.raises(InputError, match="names no file"):
        Criteo(path=())


def sources(folder: Path) -> list[tuple[Path, FlatSource]]:
    options = {"truncated_line": "skip", "split_ratio": (1, 1, 1)}
    one = write_criteo(folder / "a.txt", criteo_rows(30))
    two = write_avazu(folder / "b.csv", avazu_rows(30))
    three = write_frappe(folder / "c.libfm", frappe_rows(30))
    return [
        (one, Criteo(path=(one,), **options)),
        (two, Avazu(path=two, **options)),
        (two, Avazu(path=two, split="temporal", **options)),
        (three, Frappe(path=(three,), **options)),
    ]


# of a line that is not UTF-8 pyarrow complains beside the error that it raises
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_bytes_crash_the_preparation(tmp_path: Path) -> None:
    """Where they are no log there is an InputError and no store."""
    draw = random.Random(0)
    alphabet = b'0123456789abcdef\t\t,,: \r\n\n"-.x\x00\xff\xc3'
    for file, source in sources(tmp_path):
        whole = file.read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            for _ in range(draw.randrange(4)):
                place = draw.randrange(len(content))
                content[place : place + draw.randrange(3)] = draw.choices(alphabet, k=2)
            file.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
            out = tmp_path / "store"
            try:
                prepare(source, out, overwrite=True)
            except InputError as error:
                assert str(file) in str(error) or "split has" in str(error), error
            assert {path.name for path in tmp_path.iterdir()} <= {
                *("a.txt", "b.csv", "c.libfm", "store")
            }
