"""Bytes of tables and their optimizer: as predicted for each rank, and as gloo ranks hold them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from sharding.apply import TableOptimizer, shard, sharded_collections
from sharding.catalogue import Cluster, load_nodes
from sharding.cluster_plan import PlacedTable, placed, search_plan
from sharding.costs import WEIGHT_BYTES, CostModel, Lookup, TableLoad
from sharding.frequency import RowFrequency
from sharding.given_plan import given_plan
from sharding.plan import ShardingConfig, collections
from tests.batches import fields
from tests.ranks import run_ranks

MIXED = {
    "attention_item": "row_wise",
    "attention_category": "table_wise",
    "representation_item": "column_wise",
}


def ranker() -> LifelongRanker:
    config = RankerConfig(hidden=(8,), auxiliary_hidden=(8,))
    chosen = fields(attention_dim=8, representation_dim=256)
    return LifelongRanker(config, chosen, torch.device("meta"))


def planned(
    world_size: int, optimizer: str, dtype: str = "float32", **config: Any
) -> list[PlacedTable]:
    model = ranker()
    loads = {
        t.name: TableLoad((Lookup(10),), RowFrequency.uniform(t.num_embeddings))
        for _, bags in collections(model)
        for t in bags.embedding_bag_configs()
    }
    cluster = Cluster(world_size, 1, load_nodes()["CPU-SPR"])
    costs = CostModel(cluster, loads, optimizer, WEIGHT_BYTES[dtype])
    plan = search_plan(model, costs, ShardingConfig(**config), free=10**9, beside=1e-3)
    return placed(model, plan, costs)


def as_json(tables: list[PlacedTable]) -> list[dict[str, Any]]:
    return [
        {
            "name": t.name, "rows": t.rows, "width": t.width, "sharding_type": t.kind,
            "compute_kernel": t.kernel,
            "shards": [
                {"rank": s.rank, "offset": [*s.offset], "size": [*s.size]} for s in t.shards
            ],
        }
        for t in tables
    ]  # fmt: skip


def allocated(
    rank: int, world_size: int, entries: list[dict[str, Any]], optimizer: str, dtype: str
) -> tuple[int, int]:
    """Bytes of weights and of optimizer state in FBGEMM's kernels on this rank."""
    model = ranker()
    plan = given_plan(
        model, entries, world_size=world_size, local_world_size=world_size, device_type="cpu"
    )
    tables = TableOptimizer(kind=optimizer, dtype=dtype)
    sharded = shard(model, plan, optimizer=tables, device=torch.device("cpu"), seed=1)
    kernels = [
        kernel.emb_module
        for _, bags in sharded_collections(sharded)
        for lookup in bags._lookups
        for kernel in lookup._emb_modules
    ]

    def held(prefix: str) -> int:
        def size(tensor: Tensor) -> int:
            # FBGEMM keeps one number in the place of a state that there is not
            return tensor.element_size() * tensor.numel() if tensor.numel() > 1 else 0

        return sum(
            size(tensor)
            for kernel in kernels
            for name, tensor in [*kernel.named_parameters(), *kernel.named_buffers()]
            if name == prefix or (name.startswith(prefix) and name.endswith("_host"))
        )

    replicas = [  # their state is no kernel's, but ours
        momentum
        for state in sharded.fused_optimizer.state.values()
        for momentum in state.values()
        if not hasattr(momentum, "local_shards")
    ]
    return held("weights"), held("momentum") + sum(4 * m.numel() for m in replicas)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    "kind", ["table_wise", "row_wise", "column_wise", "data_parallel", "mixed"]
)
def test_ranks_hold_the_predicted_bytes(kind: str, world_size: int, optimizer: str) -> None:
    assert_predicted(kind, world_size, optimizer, "float32")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_ranks_hold_half_of_it_in_float16(kind: str, world_size: int) -> None:
    assert_predicted(kind, world_size, "rowwise_adagrad", "float16")


def assert_predicted(kind: str, world_size: int, optimizer: str, dtype: str) -> None:
    config = (
        {"kinds": ("table_wise", "row_wise", "column_wise"), "table_kinds": MIXED}
        if kind == "mixed"
        else {"kinds": (kind,)}
    )
    tables = planned(world_size, optimizer, dtype, **config)
    if kind == "mixed":
        assert MIXED.items() <= {t.name: t.kind for t in tables}.items()
    predicted = [
        [
            sum(getattr(s.cost, part) for t in tables for s in t.shards if s.rank == rank)
            for part in ("weights", "optimizer")
        ]
        for rank in range(world_size)
    ]
    held = run_ranks(allocated, world_size, as_json(tables), optimizer, dtype)
    for of_rank, expected in zip(held, predicted, strict=True):
        assert of_rank == pytest.approx(expected, rel=0.01)
