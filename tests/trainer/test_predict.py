"""Predictions of a split, and what is counted on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.loader import RequestLoader
from data.store import EventStore, numpy_columns, read_arrow
from sharding.plan import ShardingConfig
from tests.ranks import run_ranks
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EXPERIMENT, ranks_of
from trainer.predict import AttentionByRecency, LookupCounter
from trainer.state import build_state, forward


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_candidate_is_scored_once_in_the_order_of_the_requests(
    world_size: int, finished: MakeRun, store: Path
) -> None:
    found = numpy_columns(read_arrow(finished(world_size) / "predictions-test.arrow"))
    parts = [partition.requests("test") for partition in EventStore.open(store).partitions]
    count = np.concatenate([np.diff(part.offsets) for part in parts])
    user = np.concatenate([part.user for part in parts])
    np.testing.assert_array_equal(found["label"], np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(found["user"], np.repeat(user, count))
    np.testing.assert_array_equal(found["request"], np.repeat(np.arange(len(count)), count))
    assert found["probability"].min() > 0
    assert found["probability"].max() < 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_lookups_are_counted_over_all_ranks(world_size: int, store: Path) -> None:
    # decoupled tables, K chosen events and M others for each of S candidates of N events in all
    def count(rank: int, world_size: int) -> dict:
        ranks = ranks_of(rank, world_size)
        opened = EventStore.open(store)
        # replicas would be read past TorchRec, by blocks, which are padded
        sharded = EXPERIMENT.changed(sharding=ShardingConfig(kinds=("table_wise",)))
        state = build_state(sharded, opened, ranks)
        counter = LookupCounter(state.model.module)
        loader = RequestLoader(
            opened, "train", requests_per_batch=37, history_length=16, rank=rank,
            world_size=world_size,
        )  # fmt: skip
        batches = iter(loader)
        for _ in range(2):
            forward(state.model, next(batches))
        counts = counter.close(2, ranks.device)
        forward(state.model, next(batches))  # counts no more
        return counts

    global_batches = iter(
        RequestLoader(EventStore.open(store), "train", requests_per_batch=37, history_length=16)
    )
    batches = [next(global_batches) for _ in range(2)]
    N = sum(int(batch.history_lengths.sum()) for batch in batches) / 2
    S = sum(batch.global_candidates for batch in batches) / 2
    K, M = EXPERIMENT.model.top_k, EXPERIMENT.model.auxiliary_others
    # two ranks sum rows in the tables: over the chosen, and over chosen and others
    summed = K * (world_size > 1)
    expected = {
        "attention": {"with_gradient": S * (K + M) + S, "without_gradient": N + S},
        "representation": {"with_gradient": S * (summed + K + M) + S, "without_gradient": 0},
    }
    for counts in run_ranks(count, world_size):
        assert len(counts) == 6
        for table, found in counts.items():
            wanted = expected[table.split("_")[0]]
            if world_size == 1 and table.startswith("attention"):
                # the search reads the table itself, block by block, with the padding of a block
                read = found["without_gradient"]
                assert wanted["without_gradient"] <= read < 1.5 * wanted["without_gradient"]
                wanted = wanted | {"without_gradient": read}
            assert found == wanted, table


# two ranks; a candidate for each history; its K = 2 chosen events by recency, and their weights
LENGTHS = [[3, 1], [0, 3]]
RECENCY = [[[1, 3], [1, 0]], [[0, 0], [2, 1]]]
WEIGHTS = [[[0.75, 0.25], [1.0, 0.0]], [[0.0, 0.0], [0.5, 0.5]]]


def test_attention_by_recency_is_a_mean_over_the_candidates_with_a_history() -> None:
    def measure(rank: int, world_size: int) -> dict:
        recency = AttentionByRecency(4, torch.device("cpu"))
        output = SimpleNamespace(
            recency=torch.tensor(RECENCY[rank]), weights=torch.tensor(WEIGHTS[rank])
        )
        batch = SimpleNamespace(
            history_lengths=torch.tensor(LENGTHS[rank]), candidate_counts=torch.tensor([1, 1])
        )
        recency.update(output, batch)
        return recency.to_json()

    found = run_ranks(measure, 2)
    assert found[0] == found[1]
    assert found[0]["recency"] == [1, 2, 3, 4]
    # three candidates have a history
    assert found[0]["weight"] == pytest.approx([2.25 / 3, 0.5 / 3, 0.25 / 3, 0])
    uniform = np.zeros(4)
    for length in (3, 1, 3):
        for rank in range(length):
            uniform[rank] += 1 / length / 3
    assert found[0]["uniform"] == pytest.approx(uniform)


def test_candidates_of_one_request_count_each() -> None:
    def measure(rank: int, world_size: int) -> dict:
        recency = AttentionByRecency(2, torch.device("cpu"))
        output = SimpleNamespace(recency=torch.tensor([[1], [2], [1]]), weights=torch.ones(3, 1))
        batch = SimpleNamespace(
            history_lengths=torch.tensor([2, 1]), candidate_counts=torch.tensor([2, 1])
        )
        recency.update(output, batch)
        return recency.to_json()

    found = run_ranks(measure, 1)[0]
    assert found["weight"] == pytest.approx([2 / 3, 1 / 3])
    assert found["uniform"] == pytest.approx([(0.5 + 0.5 + 1) / 3, (0.5 + 0.5) / 3])
