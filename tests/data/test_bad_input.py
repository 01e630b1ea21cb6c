"""Each wrong input ends with one message that says what was given and what helps, and leaves
nothing behind."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import polars as pl
import pytest

import data.build
import data.sources.delimited
from data.errors import InputError
from data.prepare import prepare
from data.sources.table import TableSource
from data.sources.taobao import TaobaoSource
from tests.data.memory_source import MemorySource, log
from tests.data.refusals import expect_refused


def csv(tmp_path: Path, text: str, **options: object) -> TableSource:
    file = tmp_path / "log.csv"
    file.write_text(text)
    return TableSource(path=file, **options)


def test_missing_file(tmp_path: Path, out: Path) -> None:
    expect_refused(TableSource(path=tmp_path / "no.csv"), out, "no.csv does not exist")
    expect_refused(
        TaobaoSource(path=tmp_path / "no.csv"), out, "no.csv", "Give the path of a CSV file"
    )


def test_folder_without_logs(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    expect_refused(TableSource(path=tmp_path / "empty"), out, "holds no file", ".parquet")


def test_missing_column(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,product,time\n1,2,3\n")
    expect_refused(source, out, "no column 'item'", "['user', 'product', 'time']")
    pl.DataFrame({"user": [1], "time": [1]}).write_parquet(tmp_path / "log.parquet")
    source = TableSource(path=tmp_path / "log.parquet")
    expect_refused(source, out, "no column 'item'", "['user', 'time']")


def test_another_delimiter(tmp_path: Path, out: Path) -> None:
    expect_refused(
        csv(tmp_path, "user;item;time\n1;2;3\n"), out, "['user;item;time']", "--delimiter"
    )


def test_a_side_column_named_twice(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time,maker\n1,2,3,4\n", side=("maker", "maker"))
    expect_refused(source, out, "named twice: maker, maker")


@pytest.mark.parametrize("text", ["", "user,item,time\n"])
def test_empty_log(tmp_path: Path, out: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"no rows|empty|Empty"):
        prepare(csv(tmp_path, text), out)


def test_log_without_long_histories(out: Path) -> None:
    source = MemorySource(frames=[pl.DataFrame({"user": [1], "item": [1], "time": [1]})])
    object.__setattr__(source, "min_events", 5)
    expect_refused(source, out, "No user of the log has 5 events", "longest history has 1")


@pytest.mark.parametrize("repeat", [1, 100])
def test_last_line_cut(tmp_path: Path, out: Path, repeat: int) -> None:
    text = "user,item,time\n" + "1,2,10\n1,3,10\n" * repeat + "1,4"
    source = csv(tmp_path, text)
    line = f"log.csv, line {2 * repeat + 2}"
    expect_refused(source, out, line, "2 columns where 3 are expected", "--truncated-line")
    info = prepare(csv(tmp_path, text, truncated_line="skip"), tmp_path / "kept")
    assert info.log_events == 2 * repeat


CUT_NUMBER = "user,item,time\n" + "1,2,1000\n" * 200 + "1,3,100"


def test_last_number_cut(tmp_path: Path, out: Path) -> None:
    expect_refused(csv(tmp_path, CUT_NUMBER), out, "log.csv", "'100'", "--truncated-line skip")
    info = prepare(csv(tmp_path, CUT_NUMBER, truncated_line="skip"), tmp_path / "kept")
    assert (info.log_events, info.items) == (200, 1)


@pytest.mark.parametrize(
    "text",
    [
        CUT_NUMBER + "\n",
        CUT_NUMBER + "0",
        CUT_NUMBER.replace("1,2,1000", "1,2,100", 1),
        "user,item,time\n1,3,10\n1,2,9",
        CUT_NUMBER.replace("1,2,1000\n", "1,2,1000,yes\n").replace("time", "time,sold") + ",no",
    ],
    ids=["line break", "as long", "another as short", "few lines", "text"],
)
def test_a_last_line_without_evidence_of_a_cut_is_kept(tmp_path: Path, text: str) -> None:
    source = csv(tmp_path, text, sort=True, truncated_line="skip")
    events = len(text.splitlines()) - 1
    assert prepare(source, tmp_path / "store").log_events == events


def test_two_columns_of_one_name(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time,item\n1,2,3,4\n")
    expect_refused(source, out, "several columns named 'item'", "Rename")


def test_line_in_the_middle_cut(tmp_path: Path, out: Path) -> None:
    text = "user,item,time\n1,2,3\n1,3\n1,4,5\n"
    for truncated_line in ("error", "skip"):
        source = csv(tmp_path, text, truncated_line=truncated_line)
        expect_refused(source, out, "log.csv, line 3", "Repair the file")


def test_a_quote_that_is_never_closed(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, 'user,item,time\n1,2,3\n1,"2,3\n1,4,5\n')
    expect_refused(source, out, "log.csv, line 3", "2 columns where 3 are expected")


def test_gzip_cut(tmp_path: Path, out: Path) -> None:
    rng = random.Random(0)
    lines = "".join(f"1,{rng.random()},{i}\n" for i in range(1000))
    whole = gzip.compress(f"user,item,time\n{lines}".encode())
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    expect_refused(TableSource(path=tmp_path / "log.csv.gz", text=("item",)), out, "log.csv.gz")


def test_parquet_cut(tmp_path: Path, out: Path) -> None:
    file = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1], "item": [1], "time": [1]}).write_parquet(file)
    file.write_bytes(file.read_bytes()[:-20])
    expect_refused(TableSource(path=file), out, "no complete Parquet file")


def test_ids_that_are_neither_integers_nor_text(tmp_path: Path, out: Path) -> None:
    expect_refused(
        csv(tmp_path, "user,item,time\n1.5,2,3\n"),
        out,
        "log.csv: column user holds Float64",
        "text",
    )


def test_id_of_another_type_than_those_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    monkeypatch.setattr(data.sources.delimited, "BLOCK_BYTES", 100)  # types are guessed from it
    rows = "1,2,3\n" * 50
    source = csv(tmp_path, f"user,item,time\n{rows}B7,2,3\n")
    expect_refused(source, out, "line 52, column 1", "'B7'", "--text")


def test_files_of_different_types(tmp_path: Path, out: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    pl.DataFrame({"user": [1], "item": [1], "time": [1]}).write_parquet(parts / "a.parquet")
    pl.DataFrame({"user": ["x"], "item": [1], "time": [2]}).write_parquet(parts / "b.parquet")
    expect_refused(
        TableSource(path=parts), out, "columns change", "event 2", "same columns and types"
    )


@pytest.mark.parametrize("column", ["user", "item"])
def test_negative_id(tmp_path: Path, out: Path, column: str) -> None:
    row = {"user": 1, "item": 2} | {column: -4}
    source = csv(tmp_path, f"user,item,time\n1,1,1\n{row['user']},{row['item']},3\n")
    expect_refused(
        source, out, f"log.csv: column {column} has id -4 in event 2", "Write them as text"
    )


def test_huge_id(tmp_path: Path, out: Path) -> None:
    huge = 2**63
    expect_refused(
        csv(tmp_path, f"user,item,time\n{huge},2,3\n"), out, "log.csv: column user", "as text"
    )
    frame = pl.DataFrame({"user": [1], "item": pl.Series([huge], dtype=pl.UInt64), "time": [1]})
    expect_refused(
        MemorySource(frames=[frame]),
        out,
        f"source memory: column item has id {huge} in event 1",
        "2**63 - 1",
    )


def test_missing_id(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time\nu,a,1\n,b,2\n")
    expect_refused(source, out, "log.csv: column user is empty in event 2")


@pytest.mark.parametrize("time", ["NaN", "inf", "1.5"])
def test_time_that_is_no_whole_number(tmp_path: Path, out: Path, time: str) -> None:
    source = csv(tmp_path, f"user,item,time\n1,2,3.0\n1,2,{time}\n")
    expect_refused(
        source, out, "log.csv: column time, row 2", time.lower(), "Write times as integers"
    )


def test_a_late_row_is_named_by_its_number_in_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    monkeypatch.setattr(data.sources.delimited, "BLOCK_BYTES", 64)
    rows = "1,2,3.0\n" * 99
    expect_refused(
        csv(tmp_path, f"user,item,time\n{rows}1,2,nan\n"),
        out,
        "log.csv: column time, row 100",
        "nan",
    )


def test_time_that_is_text(tmp_path: Path, out: Path) -> None:
    expect_refused(
        csv(tmp_path, "user,item,time\n1,2,soon\n"), out, "log.csv: column time", "ISO dates"
    )


def test_a_date_that_may_be_of_two_months(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time\n1,2,01/02/2026\n1,3,01/03/2026\n")
    expect_refused(source, out, "log.csv: column time, row 1", "'01/02/2026'", "ISO dates")


def test_ids_that_are_not_text(tmp_path: Path, out: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user,item,time\n1,\xff\xfe,3\n")
    expect_refused(
        TableSource(path=tmp_path / "log.csv"), out, "log.csv: column item holds Binary", "UTF-8"
    )


def test_missing_time(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time\n1,2,3\n1,2,\n")
    expect_refused(source, out, "log.csv: column time is empty in event 2")


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "nan", "yes", ""])
def test_label_that_is_neither_0_nor_1(tmp_path: Path, out: Path, label: str) -> None:
    source = csv(tmp_path, f"user,item,time,label\n1,2,3,{label}\n1,3,4,{label}\n", label="label")
    expect_refused(source, out, "log.csv: column label, row 1", "not 0 or 1")


def test_unsorted_log(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time\nu,a,5\nv,a,9\nu,b,3\n")
    expect_refused(source, out, "row 3 of user u is earlier than their row 1", "--sort")


def test_a_user_who_has_every_item(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time\nu,a,1\nu,a,2\n", val_start=9, test_start=9)
    expect_refused(
        source, out, "No negative is left for user u", "more items", "leave this user out"
    )


def test_no_training_events_to_draw_from(tmp_path: Path, out: Path) -> None:
    source = csv(tmp_path, "user,item,time\nu,a,1\nu,b,2\n", val_start=0, test_start=9)
    expect_refused(source, out, "negatives cannot be drawn", "move the split times")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives must be at least 1, got 0"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave something to training"),
        ({"min_history": -1}, "must not be negative, got -1"),
        ({"val_start": 3}, "Give both"),
        ({"val_start": 3, "test_start": 2}, "got 3, 2"),
        ({"side": ("time",)}, "time"),
        ({"side": ("frequency",)}, "frequency"),
        ({"side": ("original",)}, "original"),
        ({"side": ("popularity",)}, "popularity"),
        ({"side": ("bucket",)}, "bucket"),
        ({"text": ("users",)}, r"\['users'\] that are not used"),
        ({"delimiter": "||"}, "one character"),
    ],
)
def test_options_are_checked_at_once(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableSource(path=tmp_path, **options)


@pytest.mark.parametrize("partitions", [0, -1, 10_000])
def test_number_of_partitions(out: Path, partitions: int) -> None:
    with pytest.raises(InputError, match=f"from 1 to 512, got {partitions}"):
        prepare(log(user=[1], item=[1], time=[1]), out, partitions=partitions)
