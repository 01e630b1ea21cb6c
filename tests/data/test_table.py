from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import data.sources.delimited
import data.sources.table
from data.prepare import prepare
from data.source import Requests, Split
from data.sources.table import TableSource
from data.store import EventStore, PartitionReader

CLICKS = """\
user,item,time
u,a,1
u,b,2
v,a,2
u,c,3
u,d,3
v,b,4
v,c,5
"""


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def build(source: TableSource, folder: Path) -> PartitionReader:
    prepare(source, folder / "store", overwrite=True)
    [partition] = EventStore.open(folder / "store").partitions
    return partition


def candidates(requests: Requests) -> list[list[int]]:
    bounds = requests.offsets
    return [requests.candidates[b:e].tolist() for b, e in itertools.pairwise(bounds)]


def named(ids: Iterable[int], out: Path, field: str = "item") -> list:
    """The values behind ids of the store that ``build`` made."""
    words = EventStore.open(out / "store").originals(field).to_pylist()
    return [words[i] for i in ids]


def all_requests(partition: PartitionReader) -> dict[Split, Requests]:
    return {split: partition.requests(split) for split in ("train", "val", "test")}


def test_the_next_event_is_asked_for_among_negatives(tmp_path: Path) -> None:
    source = TableSource(
        path=write(tmp_path / "log.csv", CLICKS), negatives=1, val_start=4, test_start=5
    )
    partition = build(source, tmp_path)
    # rows: u a1 b2 c3 d3 | v a2 b4 c5
    train, val, test = all_requests(partition).values()
    assert train.user.tolist() == [0, 0]
    assert train.time.tolist() == [2, 3]
    assert train.end.tolist() == [1, 2]
    assert np.diff(train.offsets).tolist() == [2, 4]
    assert named(train.candidates[::2], tmp_path) == ["b", "c", "d"]
    assert train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    negatives = {*named(train.candidates[[3, 5]], tmp_path)}
    assert negatives <= {"a", "b"}, "c and d are of the request's own time"
    assert (val.end.tolist(), named(val.candidates[:1], tmp_path)) == ([5], ["b"])
    assert (test.end.tolist(), named(test.candidates[:1], tmp_path)) == ([6], ["c"])


def test_with_a_label_every_event_is_a_candidate(tmp_path: Path) -> None:
    text = "user,item,time,label\nu,a,1,1\nu,b,2,0\nu,c,3,0\nv,a,3,1\n"
    source = TableSource(
        path=write(tmp_path / "log.csv", text), label="label", val_start=3, test_start=4
    )
    partition = build(source, tmp_path)
    train, val, test = all_requests(partition).values()
    assert [named(of, tmp_path) for of in candidates(train)] == [["a"], ["b"]]
    assert train.labels.tolist() == [1, 0]
    assert train.end.tolist() == [0, 1]
    assert [named(of, tmp_path) for of in candidates(val)] == [["c"], ["a"]]
    assert len(test) == 0
    assert named(partition.events["action"], tmp_path, "action") == [1, 0, 0, 1]


def test_impressions_of_one_moment_share_a_request(tmp_path: Path) -> None:
    text = "user,item,time,label\nu,a,1,1\nu,b,1,0\nu,c,2,0\n"
    source = TableSource(
        path=write(tmp_path / "log.csv", text), label="label", val_start=9, test_start=9
    )
    train = build(source, tmp_path).requests("train")
    assert [named(of, tmp_path) for of in candidates(train)] == [["a", "b"], ["c"]]
    assert train.end.tolist() == [0, 2]


def test_an_action_column_takes_the_place_of_the_label(tmp_path: Path) -> None:
    text = "user,item,time,label,what\nu,a,1,1,view\nu,b,2,0,buy\n"
    source = TableSource(path=write(tmp_path / "log.csv", text), label="label", action="what")
    partition = build(source, tmp_path)
    assert named(partition.events["action"], tmp_path, "action") == ["view", "buy"]


def test_fractions_split_by_time(tmp_path: Path) -> None:
    rows = "\n".join(f"u,{i % 7},{i}" for i in range(100))
    source = TableSource(
        path=write(tmp_path / "log.csv", f"user,item,time\n{rows}\n"),
        val_fraction=0.2,
        test_fraction=0.1,
    )
    assert source.split_starts == (70, 90)
    requests = all_requests(build(source, tmp_path))
    # the first event has no history
    assert [len(r) for r in requests.values()] == [69, 20, 10]


def test_the_times_of_a_large_log_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sources.table, "MAX_SAMPLES", 5)
    # an odd number of times precedes the last block, of which every second is wanted
    blocks = [pl.Series([0, 1, 2]), pl.Series([3, 4, 5, 6]), pl.Series([7, 8, 9, 10])]
    assert data.sources.table._sample(blocks).tolist() == [0, 4, 8]


def test_least_history(tmp_path: Path) -> None:
    source = TableSource(
        path=write(tmp_path / "log.csv", CLICKS), min_history=2, val_start=9, test_start=9
    )
    train = build(source, tmp_path).requests("train")
    assert train.time.tolist() == [3, 5]


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    text = "note,who,what,kind,maker,when\n,1,10,5,m,1\n,1,20,6,n,2\n"
    source = TableSource(
        path=write(tmp_path / "log.csv", text),
        user="who", item="what", time="when", category="kind", side=("maker",),
    )  # fmt: skip
    partition = build(source, tmp_path)
    assert list(partition.events) == ["item", "category", "maker", "time"]
    store = EventStore.open(tmp_path / "store")
    assert store.originals("category").to_pylist() == [None, 5, 6]
    assert store.originals("maker").to_pylist() == [None, "m", "n"]


def test_csv_gzip_parquet_and_a_folder_of_files_give_the_same_store(tmp_path: Path) -> None:
    options = {"val_start": 4, "test_start": 5}
    plain = TableSource(path=write(tmp_path / "log.csv", CLICKS), **options)
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(CLICKS.encode()))
    frame = pl.read_csv(tmp_path / "log.csv")
    frame.write_parquet(tmp_path / "log.parquet")
    parts = tmp_path / "parts"
    parts.mkdir()
    frame[:0].write_csv(parts / "-.csv")
    frame[:3].write_csv(parts / "0.csv")
    frame[3:].write_csv(parts / "1.csv")
    paths = [tmp_path / "log.csv.gz", tmp_path / "log.parquet", parts, parts / "*.csv"]
    expected = prepare(plain, tmp_path / "store").fingerprint
    for number, path in enumerate(paths):
        info = prepare(TableSource(path=path, **options), tmp_path / f"store{number}")
        assert info.fingerprint == expected, path


def test_later_files_are_read_with_the_types_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "0.csv", "user,item,time\na7,x,1\n")
    write(tmp_path / "1.csv", "user,item,time\n7,y,2\n")
    build(TableSource(path=tmp_path / "*.csv", text=("item",)), tmp_path)
    store = EventStore.open(tmp_path / "store")
    assert store.partitions[0].original_users.to_pylist() == ["a7", "7"]


def test_sort_puts_a_users_events_in_order(tmp_path: Path) -> None:
    text = "user,item,time\nu,b,2\nu,a,1\n"
    source = TableSource(path=write(tmp_path / "log.csv", text), sort=True)
    assert build(source, tmp_path).events["time"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("first", "second"),
    [("2026-01-31", "2026-02-01"), ("2026-01-31T00:00:00Z", "2026-02-01T00:00:00Z")],
)
def test_dates_become_microseconds(tmp_path: Path, first: str, second: str) -> None:
    text = f"user,item,time\nu,a,{first}\nu,b,{second}\n"
    source = TableSource(path=write(tmp_path / "log.csv", text))
    expected = [
        int(datetime(2026, month, day, tzinfo=UTC).timestamp() * 1e6)
        for month, day in ((1, 31), (2, 1))
    ]
    assert build(source, tmp_path).events["time"].tolist() == expected


def test_a_column_of_nothing_is_unknown_everywhere(tmp_path: Path) -> None:
    text = "user,item,time,kind\nu,a,1,\nu,b,2,\n"
    source = TableSource(path=write(tmp_path / "log.csv", text), category="kind")
    assert build(source, tmp_path).events["category"].tolist() == [0, 0]


def test_time_zones_become_utc(tmp_path: Path) -> None:
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    zoned = pl.Series([noon], dtype=pl.Datetime("ns", "UTC")).dt.convert_time_zone("Asia/Tokyo")
    pl.DataFrame({"user": [1], "item": [1], "time": zoned}).write_parquet(tmp_path / "log.parquet")
    partition = build(TableSource(path=tmp_path / "log.parquet"), tmp_path)
    assert partition.events["time"].tolist() == [int(noon.timestamp() * 1e6)]


def test_a_quoted_value_may_span_lines_and_blocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data.sources.delimited, "BLOCK_BYTES", 64)
    rows = "".join(f'u,"a\n, {i}",{i}\n' for i in range(50))
    source = TableSource(path=write(tmp_path / "log.csv", f"user,item,time\n{rows}"))
    build(source, tmp_path)
    words = EventStore.open(tmp_path / "store").originals("item").to_pylist()
    assert sorted(words[1:]) == sorted(f"a\n, {i}" for i in range(50))


def test_numbers_can_be_read_as_text(tmp_path: Path) -> None:
    text = "user,item,time\n007,1,1\n7,1,2\n"
    info = prepare(
        TableSource(path=write(tmp_path / "log.csv", text), text=("user",)), tmp_path / "store"
    )
    assert info.users == 2


def test_a_user_with_one_event_has_no_requests(tmp_path: Path) -> None:
    info = prepare(
        TableSource(path=write(tmp_path / "log.csv", "user,item,time\nu,a,1\n")), tmp_path / "store"
    )
    assert info.events == 1
    assert sum(info.requests.values()) == 0
