"""The criteo source against plain Python over the raw lines."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

import data.flat
import data.sources.raw_rows
from data.errors import InputError
from data.prepare import prepare
from data.source import SPLITS
from data.sources.criteo import Criteo
from data.store import EventStore
from tests.data.flat_logs import (
    IDS,
    INTEGERS,
    check_columns,
    criteo_rows,
    rows_of,
    split_by_hash,
    split_mix,
    write_criteo,
)

ROWS = criteo_rows(700)
LABELS = [int(cells[0]) for cells in ROWS]


def prepared(tmp_path: Path, rows: list[list[str]] = ROWS, **options: object) -> EventStore:
    file = write_criteo(tmp_path / "train.txt", rows)
    prepare(Criteo(path=(file,), **options), tmp_path / "store", partitions=3)
    return EventStore.open(tmp_path / "store")


def column(rows: list[list[str]], number: int) -> list[str | None]:
    return [cells[number] or None for cells in rows]


def ids_of(rows: list[list[str]]) -> dict[str, list[str | None]]:
    return {name: column(rows, 14 + place) for place, name in enumerate(IDS)}


def squared_logarithms(rows: list[list[str]]) -> dict[str, list[str | None]]:
    def bucket(cell: str | None) -> str | None:
        if cell is None or int(cell) <= 2:
            return cell
        return str(math.floor(math.log(int(cell)) ** 2))

    return {name: list(map(bucket, column(rows, 1 + i))) for i, name in enumerate(INTEGERS)}


def splits_by_hash(rows: list[list[str]], ratio: tuple[int, ...], seed: int = 0) -> list[int]:
    return [split_by_hash(row, seed, ratio) for row in range(len(rows))]


def check_numbers(store: EventStore, rows: list[list[str]]) -> None:
    assert store.numbers == INTEGERS
    for split in SPLITS:
        for part in store.partitions:
            of = part.requests(split)
            for place, name in enumerate(INTEGERS, start=1):
                cells = [rows[row][place] for row in of.time.tolist()]
                expected = np.array([float(cell) if cell else np.nan for cell in cells], np.float32)
                np.testing.assert_array_equal(of.numbers[name], expected)


def test_x1_keeps_integers_as_numbers_and_every_id_of_the_training_rows(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    assert store.flat
    check_columns(store, LABELS, ids_of(ROWS), splits_by_hash(ROWS, (7, 2, 1)), min_count=1)
    check_numbers(store, ROWS)


def test_x4_makes_ids_of_squared_logarithms_that_ten_training_rows_have(tmp_path: Path) -> None:
    store = prepared(tmp_path, preparation="x4")
    columns = squared_logarithms(ROWS) | ids_of(ROWS)
    check_columns(store, LABELS, columns, splits_by_hash(ROWS, (8, 1, 1)), min_count=10)
    assert store.numbers == []
    assert all((store.train_counts(name)[2:] >= 10).all() for name in columns)


def test_min_count_and_split_ratio_can_be_chosen(tmp_path: Path) -> None:
    store = prepared(tmp_path, min_count=3, split_ratio=(1, 1, 2))
    check_columns(store, LABELS, ids_of(ROWS), splits_by_hash(ROWS, (1, 1, 2)), min_count=3)


def test_another_seed_splits_otherwise(tmp_path: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", ROWS)
    prepare(Criteo(path=(file,)), tmp_path / "store", seed=5)
    splits = splits_by_hash(ROWS, (7, 2, 1), seed=5)
    check_columns(EventStore.open(tmp_path / "store"), LABELS, ids_of(ROWS), splits, min_count=1)


def test_a_temporal_split_goes_by_rows_over_all_files(tmp_path: Path) -> None:
    one = write_criteo(tmp_path / "day_0", ROWS[:100])
    two = tmp_path / "day_1.gz"
    two.write_bytes(gzip.compress(write_criteo(tmp_path / "plain", ROWS[100:]).read_bytes()))
    prepare(Criteo(path=(one, two), split="temporal"), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    splits = [0] * 490 + [1] * 140 + [2] * 70
    check_columns(store, LABELS, ids_of(ROWS), splits, min_count=1)


def test_files_can_be_the_splits(tmp_path: Path) -> None:
    files = tuple(
        write_criteo(tmp_path / f"day_{day}", ROWS[begin:end])
        for day, (begin, end) in enumerate([(0, 300), (300, 500), (500, 600), (600, 700)])
    )
    source = Criteo(path=files, split="files", split_ratio=(2, 1, 1))
    prepare(source, tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    splits = [0] * 500 + [1] * 100 + [2] * 100
    check_columns(store, LABELS, ids_of(ROWS), splits, min_count=1)


def test_hashed_ids_are_the_same_for_the_same_value_and_below_the_buckets(tmp_path: Path) -> None:
    store = prepared(tmp_path, hash_buckets=50)
    assert store.context == [(name, 52) for name in IDS]
    of_value: dict[tuple[str, str], set[int]] = {}
    for split in SPLITS:
        for part in store.partitions:
            of = part.requests(split)
            for place, name in enumerate(IDS, start=14):
                for row, id_ in zip(of.time.tolist(), of.context[name].tolist(), strict=True):
                    of_value.setdefault((name, ROWS[row][place]), set()).add(id_)
    assert all(len(ids) == 1 for ids in of_value.values())
    assert {ids.pop() for (_, value), ids in of_value.items() if not value} == {1}
    # what is not empty is spread over all buckets
    assert set.union(*of_value.values()) == set(range(2, 52))
    check_numbers(store, ROWS)
    with pytest.raises(InputError, match="--hash-buckets"):
        store.originals("C1")


def test_a_hashed_id_is_splitmix64_of_value_and_place_of_the_column(tmp_path: Path) -> None:
    rows = [[str(row % 2), *[""] * 13, *["1a2b3c4d"] * 26] for row in range(40)]
    store = prepared(tmp_path, rows, hash_buckets=1_000_000)
    of = store.partitions[0].requests("train")
    for place, name in enumerate(IDS):
        assert of.context[name][0] == 2 + split_mix(0, 0x1A2B3C4D, place, 0) % 1_000_000


@pytest.mark.parametrize("split", ["random", "temporal"])
def test_frames_of_any_size_give_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    file = write_criteo(tmp_path / "train.txt", ROWS)
    source = Criteo(path=(file,), preparation="x4", split=split)
    whole = prepare(source, tmp_path / "whole", partitions=2).fingerprint
    monkeypatch.setattr(data.sources.raw_rows, "BLOCK_BYTES", 1000)
    assert prepare(source, tmp_path / "blocks", partitions=2).fingerprint == whole
    monkeypatch.setattr(data.flat, "FRAME_ROWS", 7)
    assert prepare(source, tmp_path / "frames", partitions=2).fingerprint == whole


@pytest.mark.parametrize("options", [{}, {"preparation": "x4"}, {"hash_buckets": 9}])
def test_prepared_twice_a_log_gives_the_same_fingerprint(tmp_path: Path, options: dict) -> None:
    file = write_criteo(tmp_path / "train.txt", ROWS)
    packed = tmp_path / "train.txt.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    found = {
        prepare(Criteo(path=(path,), **options), tmp_path / str(number)).fingerprint
        for number, path in enumerate((file, file, packed))
    }
    assert len(found) == 1


def test_partitions_change_neither_ids_nor_order(tmp_path: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", ROWS)
    for count in (1, 6):
        prepare(Criteo(path=(file,)), tmp_path / str(count), partitions=count)
    one, six = (EventStore.open(tmp_path / name) for name in ("1", "6"))
    assert rows_of(one) == rows_of(six)
    assert [len(store.partitions) for store in (one, six)] == [1, 6]
    assert one.context == six.context
    for split in SPLITS:
        [whole] = [part.requests(split) for part in one.partitions]
        pieces = [part.requests(split) for part in six.partitions]
        for name in IDS:
            joined = np.concatenate([piece.context[name] for piece in pieces])
            np.testing.assert_array_equal(whole.context[name], joined)


def test_a_cut_last_line_can_be_left_out(tmp_path: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", [*ROWS, ROWS[0]])
    whole = file.read_text()
    # in the middle, and within the last id
    for cut in (whole[:-150], whole[:-4]):
        file.write_text(cut)
        with pytest.raises(InputError, match=r"train\.txt.*cut.*--truncated-line skip"):
            prepare(Criteo(path=(file,)), tmp_path / "store")
        info = prepare(Criteo(path=(file,), truncated_line="skip"), tmp_path / "s", overwrite=True)
        assert sum(info.requests.values()) == len(ROWS)


def test_the_real_rows_are_those_of_the_store(shared_data: Path, tmp_path: Path) -> None:
    """Against plain Python over 60,000 lines of the published log."""
    file = shared_data / "criteo_60k.tsv.gz"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    with gzip.open(file, "rt") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    labels = [int(cells[0]) for cells in rows]
    prepare(Criteo(path=(file,)), tmp_path / "x1", partitions=2)
    store = EventStore.open(tmp_path / "x1")
    assert sum(store.info.requests.values()) == 60_000
    assert sum(store.info.positives.values()) == sum(labels)
    check_columns(store, labels, ids_of(rows), splits_by_hash(rows, (7, 2, 1)), min_count=1)
    check_numbers(store, rows)
    prepare(Criteo(path=(file,), preparation="x4"), tmp_path / "x4")
    columns = squared_logarithms(rows) | ids_of(rows)
    store = EventStore.open(tmp_path / "x4")
    check_columns(store, labels, columns, splits_by_hash(rows, (8, 1, 1)), min_count=10)
