"""Lags and parts of a small store, against loops by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.lags import EDGES, AttentionByLag, seconds_of_unit
from analysis.slices import by_size, candidate_facts, slices
from data.loader import RequestLoader
from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.store import EventStore
from tests.ranks import run_ranks

SOURCE = Synthetic(users=20, events_per_user=30, items=50, categories=6, history_needed=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("data") / "store"
    prepare(SOURCE, folder, partitions=3)
    return EventStore.open(folder)


def loader(store: EventStore, rank: int = 0, world_size: int = 1) -> RequestLoader:
    return RequestLoader(
        store, "train", requests_per_batch=7, history_length=12, shuffle=False, prefetch=0,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def draw(batch: object) -> SimpleNamespace:
    """A model that chooses up to two events of each history."""
    lengths = batch.history_lengths.repeat_interleave(batch.candidate_counts)
    second = (lengths // 2).clamp(min=1)
    recency = torch.stack([lengths, second], dim=1) * (lengths > 0)[:, None]
    weights = torch.tensor([0.25, 0.75]).expand(len(lengths), 2) * (lengths > 0)[:, None]
    return SimpleNamespace(recency=recency, weights=weights)


def test_attention_by_lag_is_that_of_a_loop(store: EventStore) -> None:
    def measure(rank: int, world_size: int) -> dict:
        lag = AttentionByLag(store, "train", 1.0, torch.device("cpu"))
        for batch in loader(store, rank, world_size):
            lag.update(draw(batch), batch)
        return lag.to_json()

    learned, uniform, candidates = np.zeros(len(EDGES)), np.zeros(len(EDGES)), 0
    for part in store.partitions:
        requests = part.requests("train")
        for r in range(len(requests)):
            user = np.searchsorted(part.users["user"], requests.user[r])
            begin = max(part.users["first_row"][user], requests.end[r] - 12)
            ages = requests.time[r] - part.events["time"][begin : requests.end[r]]
            bins = [sum(age >= edge for edge in EDGES) - 1 for age in ages]
            count, n = np.diff(requests.offsets)[r], len(ages)
            candidates += count * (n > 0)
            for position, place in enumerate(bins):
                uniform[place] += count / n
                learned[place] += 0.25 * count * (position == 0)
                learned[place] += 0.75 * count * (n - position == max(n // 2, 1))
    for world_size in (1, 2):
        for found in run_ranks(measure, world_size):
            assert found["candidates"] == candidates
            assert found["learned"] == pytest.approx(learned / candidates, rel=1e-6)
            assert found["uniform"] == pytest.approx(uniform / candidates, rel=1e-6)


@pytest.mark.parametrize(
    ("latest", "seconds"),
    [(1.5e9, 1.0), (1.5e12, 1e-3), (1.5e15, 1e-6), (1.5e18, 1e-9), (99, None)],
)
def test_the_unit_of_times_is_told_by_their_size(latest: float, seconds: float | None) -> None:
    part = SimpleNamespace(events={"time": np.array([5, int(latest)])})
    info = SimpleNamespace(order="time")
    assert seconds_of_unit(SimpleNamespace(info=info, partitions=[part])) == seconds
    info.order = "file"
    assert seconds_of_unit(SimpleNamespace(info=info, partitions=[part])) is None


def test_facts_are_in_the_order_of_the_batches(store: EventStore) -> None:
    facts = candidate_facts(store, "train")
    batches = list(loader(store))
    category = torch.cat([batch.candidates["category"].values() for batch in batches])
    lengths = torch.cat(
        [batch.history_lengths.repeat_interleave(batch.candidate_counts) for batch in batches]
    )
    assert facts.category.tolist() == category.tolist()
    assert np.minimum(facts.history_length, 12).tolist() == lengths.tolist()
    user = torch.cat([batch.context["user"].values()[batch.request_of] for batch in batches])
    events_of = {
        int(number): int(count)
        for part in store.partitions
        for number, count in zip(part.users["user"], part.users["count"], strict=True)
    }
    assert facts.user_events.tolist() == [events_of[number] for number in user.tolist()]


def test_parts_hold_every_candidate_once(store: EventStore) -> None:
    for parts in slices(store, "train").values():
        assert (sum(part.chosen.astype(int) for part in parts) == 1).all()


def test_parts_by_size_are_about_equal_and_keep_equal_values_together() -> None:
    parts = by_size(np.arange(1000), 5)
    assert [part.chosen.sum() for part in parts] == [200] * 5
    assert parts[1].label == "200–399"
    parts = by_size(np.array([7, 7, 7, 7, 9]), 5)
    assert [part.label for part in parts] == ["7–8", "9"]
    assert [part.label for part in by_size(np.full(4, 3), 5)] == ["3"]
