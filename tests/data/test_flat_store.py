"""A flat store through the loader: every row once, with the values of its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import data.prepare
from data.loader import RequestLoader
from data.prepare import prepare
from data.source import SPLITS
from data.sources.criteo import Criteo
from data.store import EventStore, StoreInfo
from tests.data.flat_logs import IDS, INTEGERS, criteo_rows, write_criteo
from tests.data.memory_source import log

ROWS = criteo_rows(900, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("flat")
    file = write_criteo(folder / "train.txt", ROWS)
    prepare(Criteo(path=(file,)), folder / "store", partitions=4)
    return EventStore.open(folder / "store")


def lines_of(store: EventStore, split: str) -> list[list[str]]:
    """Lines of a split's requests, by request id."""
    return [ROWS[row] for row in rows_of(store, split)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_row_is_seen_once_with_the_values_of_its_line(
    store: EventStore, split: str, world_size: int
) -> None:
    lines = lines_of(store, split)
    words = {name: store.originals(name).to_pylist() for name in IDS}
    seen = []
    for rank in range(world_size):
        loader = RequestLoader(
            store,
            split,
            requests_per_batch=64,
            history_length=10,
            rank=rank,
            world_size=world_size,
        )
        for batch in loader:
            rows = batch.request_ids.tolist()
            seen += rows
            assert batch.labels.tolist() == [float(lines[row][0]) for row in rows]
            expected = [[float(c) if c else np.nan for c in lines[row][1:14]] for row in rows]
            np.testing.assert_array_equal(batch.numbers.numpy(), np.array(expected, np.float32))
            for place, name in enumerate(IDS, start=14):
                ids = batch.context[name].values().tolist()
                for row, id_ in zip(rows, ids, strict=True):
                    cell = lines[row][place]
                    assert (id_ == 1) == (cell == "")
                    # all ids of the training rows are known
                    assert id_ != 0 or split != "train"
                    assert id_ < 2 or words[name][id_] == cell
    assert sorted(seen) == list(range(len(lines)))


def test_a_batch_has_one_candidate_a_row_and_no_histories(store: EventStore) -> None:
    loader = RequestLoader(store, "train", requests_per_batch=100, history_length=10, time_gap=True)
    batch = next(iter(loader))
    rows = len(batch.request_ids)
    assert batch.numbers.shape == (rows, 13)
    assert batch.numbers.dtype == torch.float32
    assert batch.context.keys() == ["user", *IDS]
    assert batch.context["user"].values().tolist() == [0] * rows
    assert batch.history.keys() == ["item", "category", "recency", "gap"]
    assert batch.history_lengths.tolist() == [0] * rows
    assert batch.history.values().numel() == 0
    assert batch.candidates["item"].values().tolist() == [1] * rows
    assert batch.candidates["category"].values().tolist() == [1] * rows
    assert batch.request_of.tolist() == list(range(rows))
    assert batch.candidate_counts.tolist() == [1] * rows


def test_what_a_flat_store_says_of_itself(store: EventStore) -> None:
    info = store.info
    assert (info.flat, info.numbers, info.order) == (True, tuple(INTEGERS), "file")
    assert (info.events, info.users, info.items) == (0, 1, 1)
    assert store.fields == [("item", 2), ("category", 2)]
    assert info.candidates == info.requests
    assert sum(info.positives.values()) == sum(int(cells[0]) for cells in ROWS)
    assert StoreInfo.read(store.path) == info


def test_a_partition_is_made_for_every_so_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.prepare, "ROWS_PER_PARTITION", 400)
    file = write_criteo(tmp_path / "train.txt", ROWS)
    info = prepare(Criteo(path=(file,)), tmp_path / "store")
    assert [sum(part.requests.values()) for part in info.partitions] == [300, 300, 300]


def test_more_partitions_than_rows_leave_none_empty(tmp_path: Path) -> None:
    rows = criteo_rows(40)
    file = write_criteo(tmp_path / "train.txt", rows)
    source = Criteo(path=(file,), split_ratio=(1, 1, 1))
    info = prepare(source, tmp_path / "store", partitions=100)
    assert [sum(part.requests.values()) for part in info.partitions] == [1] * 40
    loader = RequestLoader(
        EventStore.open(tmp_path / "store"), "train", requests_per_batch=8, history_length=1
    )
    assert sum(len(batch.labels) for batch in loader) == info.requests["train"]


def test_a_store_of_before_numbers_is_read_as_one_without(tmp_path: Path) -> None:
    prepare(log(user=[1], item=[1], time=[1]), tmp_path / "store")
    file = tmp_path / "store" / "store.json"
    content = json.loads(file.read_text())
    assert content.pop("numbers") == []
    assert content.pop("flat") is False
    file.write_text(json.dumps(content))
    store = EventStore.open(tmp_path / "store")
    assert (store.flat, store.numbers) == (False, [])


def test_a_value_that_only_validation_has_is_unknown(tmp_path: Path) -> None:
    rows = criteo_rows(60)
    for row in (50, 51):
        rows[row][14] = "deadbeef"
    file = write_criteo(tmp_path / "train.txt", rows)
    source = Criteo(path=(file,), split="temporal", split_ratio=(4, 1, 1))
    prepare(source, tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    assert "deadbeef" not in store.originals("C1").to_pylist()
    [part] = store.partitions
    of = part.requests("test")
    assert of.context["C1"][of.time.tolist().index(50)] == 0


def test_the_scratch_files_are_gone(store: EventStore) -> None:
    names = {path.name for path in store.path.iterdir()}
    parts = {f"part-{number:05d}" for number in range(4)}
    assert names == {"store.json", "checksums.sha256", "items.arrow", "vocabulary", *parts}


def test_a_row_is_found_again_by_its_time(store: EventStore) -> None:
    rows = pl.concat(
        pl.Series(part.requests(split).time) for split in SPLITS for part in store.partitions
    )
    assert rows.sort().to_list() == list(range(len(ROWS)))


@pytest.mark.parametrize("hash_buckets", [None, 50])
def test_a_smaller_share_trains_on_some_of_the_same_rows_and_is_tested_on_all(
    store: EventStore, tmp_path: Path, hash_buckets: int | None
) -> None:
    file = write_criteo(tmp_path / "train.txt", ROWS)
    rows = {1.0: {split: rows_of(store, split) for split in SPLITS}}
    for share in (0.6, 0.2):
        source = Criteo(path=(file,), training_share=share, hash_buckets=hash_buckets)
        prepare(source, tmp_path / f"{share}", partitions=4)
        thinned = EventStore.open(tmp_path / f"{share}")
        rows[share] = {split: rows_of(thinned, split) for split in SPLITS}
        trained = len(rows[share]["train"])
        assert trained == pytest.approx(share * len(rows[1.0]["train"]), abs=40)
        assert thinned.info.left_out == {
            "beyond the training share": len(rows[1.0]["train"]) - trained
        }
        if hash_buckets is None:
            seen = {ROWS[row][14] for row in rows[share]["train"]} - {""}
            assert {word for word in thinned.originals("C1").to_pylist() if word} == seen
    for split in ("val", "test"):
        assert rows[0.2][split] == rows[0.6][split] == rows[1.0][split]
    assert set(rows[0.2]["train"]) < set(rows[0.6]["train"]) < set(rows[1.0]["train"])


def rows_of(store: EventStore, split: str) -> list[int]:
    """Their numbers in the log."""
    return [int(row) for part in store.partitions for row in part.requests(split).time]
