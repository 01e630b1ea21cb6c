"""Each wrong input ends with one message that says what was given and what helps, and leaves
nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import data.build
import data.sources.delimited
from data.errors import InputError
from data.prepare import prepare
from data.sources.table import TableSource
from data.sources.taobao import TaobaoSource
from data.store import EventStore
from tests.data.memory_source import MemorySource, log


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where a store would be; checks that nothing is there in the end."""
    folder = tmp_path / "stores"
    folder.mkdir()
    yield folder / "store"
    assert list(folder.iterdir()) == []


def csv(tmp_path: Path, text: str, **options: object) -> TableSource:
    file = tmp_path / "log.csv"
    file.write_text(text)
    return TableSource(path=file, **options)


def expect_refused(source: object, out: Path, *parts: str) -> None:
    """The message has all parts, in this order."""
    with pytest.raises(InputError) as error:
        prepare(source, out)
    position = 0
    for part in parts:
        assert part in str(error.value)[position:], f"{part!r} not in: {error.value}"
        position += str(error.value)[position:].index(part) + len(part)


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


def test_out_that_is_no_store_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no event store"):
        prepare(log(user=[1], item=[1], time=[1]), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_out_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    link = tmp_path / "store"
    link.symlink_to(tmp_path / "large_disk")
    source = log(user=[1], item=[1], time=[1])
    for overwrite in (False, True):
        prepare(source, link, overwrite=overwrite)
        assert link.is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large_disk", "store"]
        assert (tmp_path / "large_disk" / "store.json").is_file()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_out_that_cannot_be_written() -> None:
    with pytest.raises(InputError, match=r"cannot be written to .* Name another --out"):
        prepare(log(user=[1], item=[1], time=[1]), "/proc/no/store")


def test_what_a_killed_run_left_is_named_and_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # process ids come back: this one is alive, and is ours
    left = tmp_path / f"store.partial-{os.getpid()}"
    of_another_store = tmp_path / "store2.partial-1"
    for folder in (left, of_another_store):
        folder.mkdir()
        (folder / "items.arrow").touch()
    prepare(log(user=[1], item=[1], time=[1]), tmp_path / "store")
    assert capsys.readouterr().err == f"Deleting {left}, left by a run that was killed.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", of_another_store.name]


def test_what_a_living_run_writes_is_named_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = log(user=[1], item=[1], time=[1])

    def meanwhile() -> Iterator[pl.DataFrame]:
        [partial] = tmp_path.iterdir()
        other = "from data import prepare; prepare._clear_leftovers(prepare.Path('store'))"
        found = subprocess.run(
            [sys.executable, "-c", other],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stderr == f"{partial.name} stays: another run writes it, or it is not ours.\n"
        yield from source.frames

    running = dataclasses.replace(source)
    object.__setattr__(running, "event_frames", meanwhile)
    prepare(running, tmp_path / "store")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("renamed", [1, 2])
def test_interrupted_while_it_is_replaced_a_store_is_the_old_or_the_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, renamed: int
) -> None:
    out, rename, renames = tmp_path / "store", Path.rename, []

    def interrupted(path: Path, target: Path) -> None:
        rename(path, target)
        renames.append(target)
        if len(renames) == renamed:
            raise KeyboardInterrupt

    prepare(log(user=[1], item=[1], time=[1]), out)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(log(user=[1, 1], item=[1, 1], time=[1, 2]), out, overwrite=True)
    assert EventStore.open(out).info.events == renamed
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_full_disk(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data.build, "write_arrow", full)
    expect_refused(log(user=[1], item=[1], time=[1]), out, str(out.parent), "is full", "--out")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="only root can mount a small disk"
)
def test_full_disk_for_real(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True
    )
    if mount.returncode:
        pytest.skip("mount is not allowed here")
    try:
        numbers = list(range(200_000))
        expect_refused(log(user=numbers, item=numbers, time=numbers), tmp_path / "store", "is full")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_sigterm_leaves_nothing(out: Path) -> None:
    def ended() -> Iterator[pl.DataFrame]:
        yield from source.frames
        os.kill(os.getpid(), signal.SIGTERM)

    source = log(user=[1], item=[1], time=[1])
    object.__setattr__(source, "event_frames", ended)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # else the old code ends the tests
    try:
        with pytest.raises(SystemExit) as ending:
            prepare(source, out)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ending.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("moment", ["read", "build"])
def test_ctrl_c_leaves_nothing(moment: str, out: Path) -> None:
    class Interrupted(MemorySource):
        def event_frames(self) -> Iterator[pl.DataFrame]:
            yield from self.frames
            if moment == "read":
                raise KeyboardInterrupt

        def requests(self, *_: object) -> dict:
            raise KeyboardInterrupt

    frame = pl.DataFrame({"user": [1], "item": [1], "time": [1]})
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(frames=[frame]), out)
