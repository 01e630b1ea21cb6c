"""The loader, on stores small enough to write by hand."""

import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data.batch import RankingBatch
from data.collate import GAP_BUCKETS, gap_bucket
from data.errors import InputError
from data.loader import RequestLoader, batch_seed, in_background
from data.store import EventStore
from tests.data.small_store import CATEGORY_OF, Part, Request, write_store

# part 0 has users 0 and 1 (rows 0-3 and 4-6), part 1 has user 2 (rows 0-4)
PARTS = [
    Part(
        items={0: [1, 2, 3, 4], 1: [5, 5, 1]},
        requests=[
            Request(user=0, end=0, candidates=[1, 3], labels=[1, 0], hour=7),
            Request(user=0, end=1, candidates=[2], labels=[1], hour=8),
            Request(user=1, end=6, candidates=[1, 4, 5], labels=[0, 1, 0], hour=9),
            Request(user=1, end=7, candidates=[2, 1], labels=[0, 1], hour=10),
        ],
    ),
    Part(
        items={2: [3, 1, 4, 1, 5]},
        requests=[
            Request(user=2, end=4, candidates=[5], labels=[1], hour=11),
            Request(user=2, end=2, candidates=[4, 2], labels=[1, 0], hour=12),
            Request(user=2, end=5, candidates=[1, 2, 3, 4], labels=[0, 0, 1, 0], hour=13),
        ],
    ),
]
FIRST_ROW = {0: 0, 1: 4, 2: 0}


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    return write_store(tmp_path, PARTS)


def load(store: EventStore, **options) -> RequestLoader:
    return RequestLoader(
        store, "train", **{"requests_per_batch": 3, "history_length": 3, **options}
    )


def request_ids(batches) -> list[list[int]]:
    return [batch.request_ids.tolist() for batch in batches]


def joined(lists: list[list[int]]) -> list[int]:
    return [value for one in lists for value in one]


def as_lists(batch: RankingBatch, request: int) -> dict:
    """One request of a batch, read back field by field."""
    mine = (batch.request_of == request).nonzero().flatten().tolist()
    return {
        "history": {
            key: jagged.to_dense()[request].tolist()
            for key, jagged in batch.history.to_dict().items()
        },
        "context": {
            key: jagged.values()[request].item() for key, jagged in batch.context.to_dict().items()
        },
        "candidates": {
            key: jagged.values()[mine].tolist()
            for key, jagged in batch.candidates.to_dict().items()
        },
        "labels": batch.labels[mine].tolist(),
    }


def slow_bucket(gap: int) -> int:
    """1 + the largest i with gap >= 2 ** (i / 2), in Python's whole numbers; 0 if there is none."""
    return sum(gap > 0 and gap**2 >= 2**i for i in range(200))


def slow_reference(number: int, history_length: int) -> dict:
    """The same from PARTS, one request at a time."""
    owners = [(part, request) for part in PARTS for request in part.requests]
    part, request = owners[number]
    log = [item for history in part.items.values() for item in history]
    rows = range(FIRST_ROW[request.user], request.end)[-history_length:]
    return {
        "history": {
            "item": [log[row] for row in rows],
            "category": [CATEGORY_OF[log[row]] for row in rows],
            "action": [1 + row % 3 for row in rows],
            "recency": [request.end - row for row in rows],
            # the times of PARTS are rows
            "gap": [slow_bucket(request.end - row) for row in rows],
        },
        "context": {"user": request.user, "hour": request.hour},
        "candidates": {
            "item": request.candidates,
            "category": [CATEGORY_OF[item] for item in request.candidates],
            "action": [0] * len(request.candidates),
            "recency": [0] * len(request.candidates),
            "gap": [0] * len(request.candidates),
        },
        "labels": request.labels,
    }


# histories of 0, 1, 2, 3, 4, 2 and 5 events: every length around H = 3 and around H = 2
@pytest.mark.parametrize("history_length", [1, 2, 3, 4, 100])
def test_batches_equal_a_reference_made_request_by_request(store, history_length) -> None:
    seen = 0
    for batch in load(store, history_length=history_length, time_gap=True):
        for place, number in enumerate(batch.request_ids.tolist()):
            assert as_lists(batch, place) == slow_reference(number, history_length)
            seen += 1
    assert seen == 7


def test_without_the_time_gap_there_is_no_such_field(store) -> None:
    fields = ["item", "category", "action", "recency"]
    for batch, with_gap in zip(load(store), load(store, time_gap=True), strict=True):
        assert batch.history.keys() == batch.candidates.keys() == fields
        assert with_gap.history.keys() == with_gap.candidates.keys() == [*fields, "gap"]


def test_gap_buckets_are_exact_at_every_power_of_two_and_its_root() -> None:
    edges = [2**k for k in range(63)] + [math.isqrt(2**k) for k in range(126)]
    gaps = sorted({gap + step for gap in edges for step in (-1, 0, 1)} | {2**63 - 1})
    assert gap_bucket(np.array(gaps)).tolist() == [slow_bucket(gap) for gap in gaps]
    assert slow_bucket(gaps[-1]) == GAP_BUCKETS - 1
    assert gap_bucket(np.array([-5, 0])).tolist() == [0, 0]


def test_host_tensors_count_events_and_candidates(store) -> None:
    (batch,) = load(store, requests_per_batch=7, shuffle=False)
    assert batch.history_lengths.tolist() == [0, 1, 2, 3, 3, 2, 3]
    assert batch.candidate_counts.tolist() == [2, 1, 3, 2, 1, 2, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_has_every_request_once(store, world_size) -> None:
    options = {"requests_per_batch": 4, "world_size": world_size}
    ranks = [load(store, rank=r, **options) for r in range(world_size)]
    seen = [joined(request_ids(loader)) for loader in ranks]
    assert sorted(joined(seen)) == list(range(7))


def test_four_ranks_share_one_global_batch(store) -> None:
    ranks = [load(store, requests_per_batch=7, rank=r, world_size=4) for r in range(4)]
    slices = [request_ids(loader)[0] for loader in ranks]
    assert [len(mine) for mine in slices] == [1, 2, 2, 2]
    assert joined(slices) == request_ids(load(store, requests_per_batch=7))[0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_world_size_does_not_change_the_global_batches(store, world_size) -> None:
    alone = load(store, requests_per_batch=4)
    ranks = [
        load(store, requests_per_batch=4, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for whole, *slices in zip(alone, *ranks, strict=True):
        assert joined(request_ids(slices)) == whole.request_ids.tolist()
        for part in slices:
            assert part.seed == whole.seed
            assert part.global_candidates == whole.global_candidates == len(whole.labels)


def test_the_last_batch_is_no_smaller_than_the_others_by_more_than_one(store) -> None:
    assert [len(ids) for ids in request_ids(load(store))] == [2, 2, 3]
    assert len(load(store)) == 3


def test_order_changes_with_epoch_and_seed_and_comes_back(store) -> None:
    loader = load(store, requests_per_batch=7)
    first, second = request_ids(loader), request_ids(loader)
    assert first != second
    assert first != request_ids(load(store, requests_per_batch=7, seed=1))
    loader.set_epoch(0)
    assert request_ids(loader) == first


def test_without_shuffle_the_order_is_the_store_s(store) -> None:
    loader = load(store, shuffle=False)
    assert joined(request_ids(loader)) == list(range(7))
    assert joined(request_ids(loader)) == list(range(7))


def test_the_state_is_the_consumer_s_and_not_the_thread_s(store) -> None:
    loader = load(store, prefetch=2)
    batches = iter(loader)
    next(batches)
    time.sleep(0.05)  # the other two batches are made by now
    assert loader.state_dict() == {"epoch": 0, "batch": 1}


def test_a_run_resumes_in_mid_epoch_at_another_world_size(store) -> None:
    alone = load(store)
    expected = [*alone, *alone]  # two epochs of three batches
    ranks = [load(store, rank=r, world_size=2) for r in range(2)]
    for loader in ranks:
        loader.load_state_dict({"epoch": 0, "batch": 2})
    rest = [[*loader, *loader] for loader in ranks]
    for whole, left, right in zip(expected[2:], *rest, strict=True):
        assert joined(request_ids([left, right])) == whole.request_ids.tolist()
        assert left.seed == right.seed == whole.seed


def test_the_state_after_an_epoch_is_the_start_of_the_next(store) -> None:
    loader = load(store)
    list(loader)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}


def test_batch_seeds_differ_in_seed_epoch_and_batch() -> None:
    seeds = {batch_seed(s, e, b) for s in range(4) for e in range(4) for b in range(4)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_prefetching_changes_nothing(store) -> None:
    assert request_ids(load(store, prefetch=0)) == request_ids(load(store, prefetch=3))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "request-loader"]


def test_the_thread_ends_when_the_iterator_is_dropped(store) -> None:
    batches = iter(load(store, requests_per_batch=1, prefetch=1))
    next(batches)
    assert len(loader_threads()) == 1
    del batches
    assert loader_threads() == []


def test_the_thread_ends_with_the_epoch(store) -> None:
    list(load(store))
    assert loader_threads() == []


def test_the_thread_ends_when_the_consumer_raises(store) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in load(store, requests_per_batch=1, prefetch=1):
            1 / 0  # noqa: B018
    assert loader_threads() == []


def test_an_exception_in_the_thread_reaches_the_consumer_in_its_turn() -> None:
    def values():
        yield 1
        raise OSError("the disk is gone")

    received = in_background(values(), ahead=2)
    assert next(received) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(received)
    assert loader_threads() == []


def test_the_thread_makes_no_more_than_the_queue_holds() -> None:
    made = []

    def values():
        for number in range(100):
            made.append(number)
            yield number

    received = in_background(values(), ahead=2)
    next(received)
    time.sleep(0.05)
    # one with the consumer, two in the queue, one waiting for a place
    assert len(made) == 4
    received.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_length": 0}, "history_length must be at least 1, got 0"),
        ({"requests_per_batch": 2, "world_size": 3}, "Raise it to at least 3"),
        ({"requests_per_batch": 8, "world_size": 8}, "Start at most 7 processes"),
        ({"requests_per_batch": 3, "world_size": 3}, "Start at most 2 processes"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_impossible_options_are_refused_with_the_way_out(store, options, message) -> None:
    with pytest.raises(InputError, match=message):
        load(store, **options)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    empty = write_store(tmp_path, [Part(items={0: [1, 2]}, requests=[])])
    with pytest.raises(InputError, match="has no train requests"):
        load(empty)


def test_a_position_beyond_the_epoch_is_refused(store) -> None:
    with pytest.raises(InputError, match="an epoch has 3 batches"):
        load(store).load_state_dict({"epoch": 0, "batch": 3})


def test_fields_are_int64_and_labels_float32(store) -> None:
    batch = next(iter(load(store)))
    for jagged in (batch.context, batch.history, batch.candidates):
        assert jagged.values().dtype == jagged.lengths().dtype == batch.request_of.dtype
    assert np.dtype("float32") == batch.labels.numpy().dtype
