from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.errors import InputError
from data.prepare import prepare
from data.source import Requests
from data.store import EventStore, read_arrow, write_requests
from tests.data.memory_source import log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "store"
    prepare(log(user=[1, 2, 1], item=[7, 8, 9], time=[1, 2, 3]), out)
    return out


def change_info(path: Path, **entries: object) -> None:
    file = path / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_columns_are_views_of_the_memory_map(path: Path) -> None:
    before = pa.total_allocated_bytes()
    partition = EventStore.open(path).partitions[0]
    arrays = [*partition.events.values(), *partition.users.values()]
    requests = partition.requests("train")
    arrays += [requests.user, requests.candidates, requests.offsets]
    assert pa.total_allocated_bytes() == before
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays)


def test_every_file_is_one_batch(path: Path) -> None:
    for file in path.rglob("*.arrow"):
        assert pa.ipc.open_file(str(file)).num_record_batches == 1


def test_open_keeps_what_was_written(path: Path) -> None:
    store = EventStore.open(path)
    assert store.info.source == "memory"
    assert store.context == []


def test_a_log_without_categories_has_no_words_for_them(path: Path) -> None:
    store = EventStore.open(path)
    assert not (path / "vocabulary" / "category.arrow").exists()
    assert store.originals("category").to_pylist() == [None] * dict(store.fields)["category"]


def _sum_items(path: Path) -> int:
    return int(EventStore.open(path).partitions[0].events["item"].sum())


def test_processes_can_share_a_store(path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_sum_items, [path, path]) == [6, 6]


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist.*twofold prepare"):
        EventStore.open(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no store\.json"):
        EventStore.open(tmp_path)


@pytest.mark.parametrize("found", [0, 2, None])
def test_another_format_is_refused(path: Path, found: int | None) -> None:
    change_info(path, format=found)
    with pytest.raises(InputError, match=f"store of format {found}.*reads format 1"):
        EventStore.open(path)


def test_a_damaged_description_is_refused(path: Path) -> None:
    change_info(path, surprise=1)
    with pytest.raises(InputError, match="surprise"):
        EventStore.open(path)
    (path / "store.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        EventStore.open(path)


def test_files_of_another_store_are_refused(path: Path, tmp_path: Path) -> None:
    prepare(log(user=[1], item=[7], time=[1]), tmp_path / "other")
    other = tmp_path / "other" / "part-00000" / "events.arrow"
    (path / "part-00000" / "events.arrow").write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"has 1 rows, but store\.json says 3"):
        EventStore.open(path)


def test_a_cut_file_is_refused(path: Path) -> None:
    file = path / "items.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="missing or damaged"):
        EventStore.open(path)


def test_a_request_list_is_read_back_as_written(tmp_path: Path) -> None:
    requests = Requests(
        user=np.array([0, 1]),
        end=np.array([1, 2]),
        time=np.array([5, 6]),
        offsets=np.array([0, 1, 3]),
        candidates=np.array([4, 5, 6], np.int32),
        labels=np.array([1, 0, 1], np.int8),
    )
    write_requests(tmp_path / "train.arrow", requests)
    columns = read_arrow(tmp_path / "train.arrow").to_pydict()
    assert columns["candidates"] == [[4], [5, 6]]
    assert columns["labels"] == [[1], [0, 1]]
