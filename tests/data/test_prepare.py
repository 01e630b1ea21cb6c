from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import data.prepare
import data.scatter
import data.vocabulary
from data.errors import InputError
from data.prepare import prepare
from data.sampling import draw_negatives
from data.source import SPLITS, Partition, Requests
from data.sources.table import TableSource
from data.store import EventStore
from tests.data.memory_source import MemorySource, log

LOG = log(
    user=["u", "v", "u", "w", "v", "u"],
    item=[30, 10, 10, 20, 30, 30],
    category=["x", "y", "y", "x", "x", "z"],
    time=[1, 2, 3, 4, 5, 6],
)


def random_log(file: Path, users: int = 50, items: int = 40, events: int = 2000) -> TableSource:
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user": rng.integers(0, users, events),
            "item": rng.zipf(1.3, events) % items,
            "time": np.arange(events) // 3,
        }
    ).write_csv(file)
    return TableSource(path=file)


def request_rows(store: EventStore) -> list[tuple]:
    """(split, user, time, length of the history, its last item, candidates, labels), sorted."""
    rows = []
    for partition in store.partitions:
        first_row = dict(zip(partition.users["user"], partition.users["first_row"], strict=True))
        for split in SPLITS:
            r = partition.requests(split)
            for i, user in enumerate(r.user):
                of = slice(r.offsets[i], r.offsets[i + 1])
                last_item = partition.events["item"][r.end[i] - 1]
                length = r.end[i] - first_row[user]
                answer = (*r.candidates[of], *r.labels[of])
                rows.append((split, user, r.time[i], length, last_item, *answer))
    return sorted(rows)


def test_events_are_sorted_by_user_and_time(tmp_path: Path) -> None:
    prepare(LOG, tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    items, categories = (store.originals(name).to_pylist() for name in ("item", "category"))
    assert (items[0], sorted(items[1:])) == (None, [10, 20, 30])
    assert (categories[0], sorted(categories[1:])) == (None, ["x", "y", "z"])
    assert store.fields == [("item", 4), ("category", 4)]
    [partition] = store.partitions
    assert partition.original_users.to_pylist() == ["u", "v", "w"]
    assert partition.users["user"].tolist() == [0, 1, 2]
    assert partition.users["first_row"].tolist() == [0, 3, 5]
    assert partition.users["count"].tolist() == [3, 2, 1]
    of_u, of_v, of_w = [30, 10, 30], [10, 30], [20]
    assert [items[i] for i in partition.events["item"]] == [*of_u, *of_v, *of_w]
    assert partition.events["time"].tolist() == [1, 3, 6, 2, 5, 4]


def test_the_last_category_seen_describes_an_item(tmp_path: Path) -> None:
    prepare(LOG, tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    words = store.originals("category").to_pylist()
    described = zip(
        store.originals("item").to_pylist(),
        (words[i] for i in store.items["category"]),
        store.items["frequency"].tolist(),
        strict=True,
    )
    # item 30 was of x, x, then z
    assert {*described} == {(None, None, 0), (30, "z", 3), (10, "y", 2), (20, "x", 1)}


def test_an_unknown_side_value_is_id_0(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 1], "item": [1, 2], "time": [1, 2], "brand": [None, "b"]})
    prepare(MemorySource(frames=[frame], side=("brand",)), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    assert store.partitions[0].events["brand"].tolist() == [0, 1]
    assert store.items["brand"].tolist() == [0, 0, 1]
    assert store.partitions[0].events["category"].tolist() == [1, 1]


def test_a_side_column_may_be_called_count(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 1], "item": [7, 7], "time": [1, 2], "count": [3, 5]})
    prepare(MemorySource(frames=[frame], side=("count",)), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    words = store.originals("count").to_pylist()
    assert [words[i] for i in store.items["count"]] == [None, 5]


def test_an_empty_value_does_not_replace_a_known_one(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 1], "item": [1, 1], "time": [1, 2], "brand": ["b", None]})
    prepare(MemorySource(frames=[frame], side=("brand",)), tmp_path / "store")
    assert EventStore.open(tmp_path / "store").items["brand"].tolist() == [0, 1]


def test_users_with_few_events_get_no_rows_but_count(tmp_path: Path) -> None:
    info = prepare(dataclasses.replace(LOG, min_events=2), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    assert (info.users, info.events, info.log_users, info.log_events) == (2, 5, 3, 6)
    frequency = dict(
        zip(store.originals("item").to_pylist(), store.items["frequency"], strict=True)
    )
    assert frequency == {None: 0, 30: 3, 10: 2, 20: 1}


def test_order_by_file_makes_the_position_the_time(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [7, 8, 7], "item": [3, 2, 1], "time": [0, 0, 0]})
    prepare(MemorySource(frames=[frame], order="file"), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    events, words = store.partitions[0].events, store.originals("item").to_pylist()
    assert events["time"].tolist() == [0, 1, 0]
    assert [words[i] for i in events["item"]] == [3, 1, 2]


@pytest.mark.parametrize("rows", [1, 7])
def test_frames_do_not_change_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int
) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 5, 60),
            "item": rng.integers(0, 30, 60),
            "category": rng.integers(0, 9, 60),
            "time": np.arange(60),
        }
    )
    whole = prepare(MemorySource(frames=[frame]), tmp_path / "whole")
    monkeypatch.setattr(data.scatter, "FRAME_ROWS", 1)
    monkeypatch.setattr(data.vocabulary, "MIN_PENDING", 10)  # so that vocabularies are merged
    pieces = prepare(MemorySource(frames=list(frame.iter_slices(rows))), tmp_path / "pieces")
    assert pieces.fingerprint == whole.fingerprint


def test_partitions_do_not_change_what_is_asked(tmp_path: Path) -> None:
    source = random_log(tmp_path / "log.csv")
    prepare(source, tmp_path / "one", partitions=1, seed=3)
    prepare(source, tmp_path / "five", partitions=5, seed=3)
    one, five = EventStore.open(tmp_path / "one"), EventStore.open(tmp_path / "five")
    assert len(five.partitions) == 5
    assert request_rows(one) == request_rows(five)


def test_a_very_long_log_has_more_partitions_than_buckets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = random_log(tmp_path / "log.csv", users=500)
    prepare(source, tmp_path / "one", partitions=1)
    monkeypatch.setattr(data.prepare, "NUM_BUCKETS", 4)
    monkeypatch.setattr(data.prepare, "EVENTS_PER_PARTITION", 100)
    info = prepare(source, tmp_path / "many")
    assert 18 <= len(info.partitions) <= 22  # of 2,000 events
    assert max(partition.events for partition in info.partitions) < 200
    one, many = EventStore.open(tmp_path / "one"), EventStore.open(tmp_path / "many")
    assert request_rows(one) == request_rows(many)


def test_a_text_user_is_where_the_number_of_their_crc_32_is(tmp_path: Path) -> None:
    # 0xcbf43926 is the CRC-32 of 123456789, in every description of it
    text = ["123456789", *map(str, range(100))]
    number = [0xCBF43926, *(zlib.crc32(user.encode()) for user in text[1:])]
    infos = [
        prepare(log(user=user, item=[1] * 101, time=[1] * 101), tmp_path / name, partitions=7)
        for name, user in (("text", text), ("number", number))
    ]
    layouts = [
        [part.users["user"].tolist() for part in EventStore.open(tmp_path / name).partitions]
        for name in ("text", "number")
    ]
    assert layouts[0] == layouts[1]
    assert all(5 <= part.users <= 30 for part in infos[0].partitions)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    source = random_log(tmp_path / "log.csv")
    first = prepare(source, tmp_path / "a", seed=3)
    again = prepare(source, tmp_path / "b", seed=3)
    other = prepare(source, tmp_path / "c", seed=4)
    assert first == again
    assert first.fingerprint != other.fingerprint
    for file in (tmp_path / "a").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_no_history_holds_the_time_of_its_request(tmp_path: Path) -> None:
    prepare(random_log(tmp_path / "log.csv"), tmp_path / "store")
    for partition in EventStore.open(tmp_path / "store").partitions:
        for split in SPLITS:
            requests = partition.requests(split)
            assert len(requests)
            assert (partition.events["time"][requests.end - 1] < requests.time).all()


def test_a_leak_is_an_error_that_names_user_and_row(tmp_path: Path) -> None:
    def leaking(partition: Partition) -> dict:
        return {
            "train": Requests(
                user=np.array([0]),
                end=np.array([2]),
                time=np.array([3]),  # the second event of user u is of time 3 itself
                offsets=np.array([0, 1]),
                candidates=np.array([1], np.int32),
                labels=np.array([1], np.int8),
            )
        }

    with pytest.raises(InputError, match=r"Leak: .* user u at time 3 .* event 2 of time 3"):
        prepare(dataclasses.replace(LOG, form=leaking), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    source = log(user=[1, 1, 1], item=[5, 5, 5], time=[1, 1, 2])
    info = prepare(source, tmp_path / "store")
    assert (info.events, info.duplicates) == (3, 1)


def test_negatives_follow_popularity_without_the_excluded() -> None:
    n = 30_000
    drawn = draw_negatives(
        np.array([0, 5, 3, 0, 2]),
        seed=1,
        user=np.arange(n),
        slot=np.zeros(n, np.int64),
        group=np.arange(n) % 2,
        excluded_group=np.array([1]),
        excluded_item=np.array([1]),
        original=str,
    )
    free, bound = np.bincount(drawn[::2], minlength=5), np.bincount(drawn[1::2], minlength=5)
    # 15,000 draws: the standard deviation of a share is at most 0.004
    np.testing.assert_allclose(free / (n / 2), [0, 0.5, 0.3, 0, 0.2], atol=0.016)
    np.testing.assert_allclose(bound / (n / 2), [0, 0, 0.6, 0, 0.4], atol=0.016)


def test_where_nearly_all_popularity_is_excluded_the_draw_is_exact() -> None:
    n = 3000
    drawn = draw_negatives(
        np.array([0, 10**12, 3, 10**12, 1]),
        seed=1,
        user=np.arange(n),
        slot=np.zeros(n, np.int64),
        group=np.arange(n) % 2,
        excluded_group=np.array([0, 0, 1]),
        excluded_item=np.array([1, 3, 1]),
        original=str,
    )
    shares = np.bincount(drawn[::2], minlength=5) / (n / 2)
    # 1,500 draws: the standard deviation of a share is at most 0.013
    np.testing.assert_allclose(shares, [0, 0, 0.75, 0, 0.25], atol=0.05)
    assert set(drawn[1::2]) == {3}  # the other group never waits


def test_a_store_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = prepare(LOG, out)
    with pytest.raises(InputError, match="--force"):
        prepare(LOG, out)
    with pytest.raises(InputError, match="empty"):
        prepare(MemorySource(frames=[]), out, overwrite=True)
    assert EventStore.open(out).info == first
    prepare(log(user=[1], item=[1], time=[1]), out, overwrite=True)
    assert EventStore.open(out).info.events == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
