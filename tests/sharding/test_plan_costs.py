"""Frequencies of rows, and the costs of shards, against sums by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sharding.catalogue import Cluster, load_nodes
from sharding.costs import CostModel, Lookup, ShardCost, TableLoad, state_bytes
from sharding.frequency import RowFrequency

NODE = dataclasses.replace(
    load_nodes()["H100-80"],
    memory_gbs=1.0, gather=0.5, update=0.1, intra_gbs=0.1, host_gbs=0.01,
)  # fmt: skip
PAIR = Cluster(1, 2, NODE)
UNIFORM = RowFrequency.uniform(100)


def cost(
    *lookups: Lookup,
    kind: str = "table_wise",
    kernel: str = "fused",
    cluster: Cluster = PAIR,
    frequency: RowFrequency = UNIFORM,
    optimizer: str = "sgd",
    offset: tuple[int, int] = (0, 0),
    size: tuple[int, int] = (100, 16),
) -> ShardCost:
    model = CostModel(cluster, {"t": TableLoad(lookups, frequency)}, optimizer)
    return model.shard("t", kind, kernel, offset, size)


def test_shares_of_counted_rows_are_their_counts() -> None:
    frequency = RowFrequency.counted(np.array([6, 1, 1, 0]))
    assert frequency.share(0, 1) == 0.75
    assert frequency.share(1, 4) == 0.25
    assert frequency.hottest(0.25) == 0.75
    assert frequency.hottest(1.0) == 1.0


def test_distinct_rows_are_those_that_a_draw_finds() -> None:
    rng = np.random.default_rng(0)
    counts = rng.zipf(1.5, 500)
    draws = rng.choice(500, size=(200, 300), p=counts / counts.sum())
    found = np.mean([len(set(of)) for of in draws])
    assert RowFrequency.counted(counts).distinct(300) == pytest.approx(found, rel=0.02)


def test_many_counts_are_grouped_without_losing_lookups() -> None:
    counts = np.arange(1, 50_001)[::-1]
    frequency = RowFrequency.counted(counts)
    assert len(frequency.rows) <= 1024
    assert frequency.rows.sum() == 50_000
    assert (frequency.rows * frequency.probability).sum() == pytest.approx(1)
    exact = counts / counts.sum()
    assert frequency.distinct(1e5) == pytest.approx((1 - (1 - exact) ** 1e5).sum(), rel=1e-3)


def test_zipf_is_the_sum_over_ranks() -> None:
    weights = 1 / np.arange(1, 10_001)
    frequency = RowFrequency.zipf(10_000, 1.0)
    assert frequency.hottest(0.01) == pytest.approx(weights[:100].sum() / weights.sum(), rel=0.02)
    assert RowFrequency.zipf(10_000, 0.0).hottest(0.25) == pytest.approx(0.25, rel=0.01)
    assert frequency.share(0, 2_500) == 0.25  # as stores lay ids out


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_a_replica_sends_its_gradient_and_no_row(optimizer: str) -> None:
    searched, trained = Lookup(1000, gradient=False), Lookup(30)
    found = cost(searched, trained, kind="data_parallel", kernel="dense", optimizer=optimizer)
    whole = cost(searched, trained, optimizer=optimizer)
    gradient = 4 * 100 * 16
    assert (found.weights, found.optimizer) == (whole.weights, whole.optimizer)
    assert found.ids_exchange == found.rows_exchange == found.inputs == 0
    assert found.gradients_exchange == PAIR.all_reduce_seconds(gradient)
    # of this rank's rows alone; 30 have a gradient, and so has the table
    assert found.outputs == 4 * 16 * (1000 + 2 * 30) + gradient
    assert found.rows_looked_up == whole.rows_looked_up / 2
    assert cost(searched, kind="data_parallel", kernel="dense").gradients_exchange == 0


def test_ids_that_were_never_seen_count_alike() -> None:
    assert RowFrequency.counted(np.zeros(10)).share(0, 5) == 0.5


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("sgd", 0), ("rowwise_adagrad", 4 * 100), ("adagrad", 4 * 1600), ("adam", 8 * 1600)],
)
def test_optimizer_state_is_what_fbgemm_keeps(optimizer: str, expected: int) -> None:
    assert state_bytes(optimizer, 100, 16) == expected


def test_a_search_has_no_backward_pass() -> None:
    searched = cost(Lookup(50, gradient=False))
    assert searched.update == searched.gradients_exchange == 0
    # 2 ranks x 50 rows of 64 bytes, read at half of 1 GB/s and written at all of it
    assert searched.lookup == pytest.approx(100 * 64 * 3 / 1e9)
    assert searched.outputs == 100 * 64
    assert searched.inputs == 100 * 16  # an id and a length each
    # half of it goes to the other rank, at 0.1 GB/s
    assert searched.rows_exchange == pytest.approx(100 * 64 / 2 / 1e8)


def test_a_lookup_with_gradient_sends_as_much_back_and_holds_it_twice() -> None:
    learned, searched = cost(Lookup(50)), cost(Lookup(50, gradient=False))
    assert learned.gradients_exchange == searched.rows_exchange
    assert learned.outputs == 2 * searched.outputs
    assert learned.update > 0


def test_what_is_read_locally_is_not_sent() -> None:
    local = cost(Lookup(50, gradient=False, local=True))
    assert local.seconds == local.lookup > 0
    assert local.inputs == local.outputs == 0


def test_a_sum_sends_one_row_for_many() -> None:
    summed, alone = cost(Lookup(5, rows=10, weighted=True)), cost(Lookup(50))
    assert summed.outputs == alone.outputs / 10
    assert summed.rows_looked_up == alone.rows_looked_up == 100


def test_a_row_wise_shard_looks_up_its_share_and_sends_a_row_for_every_bag() -> None:
    frequency = RowFrequency.counted(np.array([3] * 50 + [1] * 50))
    hot, cold = (
        cost(Lookup(50), kind="row_wise", offset=(row, 0), size=(50, 16), frequency=frequency)
        for row in (0, 50)
    )
    assert hot.rows_looked_up == pytest.approx(75)
    assert cold.rows_looked_up == pytest.approx(25)
    assert hot.rows_exchange == cold.rows_exchange == cost(Lookup(50)).rows_exchange


def test_a_cached_table_holds_its_rows_on_the_host_and_misses_come_from_there() -> None:
    hot = RowFrequency.counted(np.array([400] * 20 + [1] * 80))
    kept, cached = (
        cost(Lookup(50), kernel=kernel, frequency=hot, optimizer="adagrad")
        for kernel in ("fused", "fused_uvm_caching")
    )
    assert cached.host == kept.weights + kept.optimizer == 2 * 6400
    assert cached.weights == 0.2 * 6400 + 100 * (4 + 16 * 0.2)
    misses = 100 * 80 / 8080
    assert cached.lookup - kept.lookup == pytest.approx(misses * 64 / 1e7)


def test_short_rows_cost_a_whole_sector() -> None:
    four, eight = (cost(Lookup(50), size=(100, width)).lookup for width in (4, 8))
    # rows of 16 and of 32 bytes are both read as 32; what is written is theirs
    assert eight - four == pytest.approx(100 * 16 / 1e9)
