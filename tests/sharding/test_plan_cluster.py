"""Plans for clusters: what is cut, what fits, what lacks room, and how long planning takes up."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from sharding.catalogue import Cluster, Node, load_nodes
from sharding.cluster_plan import DoesNotFit, PlacedTable, placed, search_plan
from sharding.costs import CostModel, Lookup, TableLoad
from sharding.errors import PlanError
from sharding.frequency import RowFrequency
from sharding.plan import ShardingConfig
from sharding.proposals import CACHED, CutProposer

CALLS = {"all_to_all_ms": 1e-6, "all_reduce_ms": 1e-6, "hop_ms": 1e-6}
NODE = dataclasses.replace(load_nodes()["H100-80"], **CALLS)
"""Where collectives cost what they carry."""
MB = 10**6


def tables(**rows: int) -> nn.Module:
    """A collection with a table 16 wide (64 bytes a row) of so many rows for each name."""
    model = nn.Module()
    model.bags = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=name, embedding_dim=16, num_embeddings=count, feature_names=[name]
            )
            for name, count in rows.items()
        ],
    )
    return model


def planned(
    free: int,
    world_size: int = 4,
    *,
    lookups: dict[str, float] | None = None,
    host: bool = False,
    config: dict[str, Any] | None = None,
    optimizer: str = "sgd",
    node: Node = NODE,
    **rows: int,
) -> dict[str, PlacedTable]:
    loads = {
        name: TableLoad((Lookup((lookups or {}).get(name, 1.0)),), RowFrequency.uniform(count))
        for name, count in rows.items()
    }
    costs = CostModel(Cluster(1, world_size, node), loads, optimizer)
    model, settings = tables(**rows), ShardingConfig(**config or {})
    plan = search_plan(model, costs, settings, free=free, beside=1e-3, host=host)
    return {table.name: table for table in placed(model, plan, costs)}


def test_tables_that_fit_and_are_read_alike_stay_whole() -> None:
    found = planned(100 * MB, a=1000, b=1000, c=1000, d=1000)
    assert {table.kind for table in found.values()} == {"table_wise"}
    assert {table.shards[0].rank for table in found.values()} == {0, 1, 2, 3}


def test_a_table_that_no_rank_can_hold_is_cut() -> None:
    found = planned(30 * MB, big=10**6, small=1000)  # 64 MB
    assert found["big"].kind == "row_wise"
    assert [shard.size for shard in found["big"].shards] == [(250_000, 16)] * 4
    assert found["small"].kind == "table_wise"


def test_what_does_not_fit_is_said_with_the_bytes_that_lack() -> None:
    with pytest.raises(DoesNotFit) as error:
        planned(10 * MB, big=10**6, small=1000)
    shortage = error.value.shortage
    assert shortage.table == "big"
    # 64 MB on 4 ranks, 64 kB of the other, and some hundred bytes of buffers
    assert shortage.needed == pytest.approx(16 * MB + 16_000, rel=1e-3)
    assert shortage.missing == shortage.needed - 10 * MB


def test_the_first_table_without_room_is_not_always_the_largest() -> None:
    with pytest.raises(DoesNotFit) as error:
        planned(20 * MB, large=10**6, next=600_000, small=1000)
    assert error.value.shortage.table == "next"


def test_the_state_of_the_optimizer_counts() -> None:
    planned(20 * MB, a=10**6)
    with pytest.raises(DoesNotFit):
        planned(20 * MB, a=10**6, optimizer="adam")


def test_where_the_device_ends_the_host_may_help() -> None:
    found = planned(10 * MB, big=10**6, small=1000, host=True)
    assert found["big"].kernel == "fused_uvm_caching"
    assert found["small"].kernel == "fused"
    assert sum(shard.cost.host for shard in found["big"].shards) == 64 * MB


def test_a_table_that_keeps_one_rank_busy_is_cut_though_it_fits() -> None:
    local, cut = {"hot": 1e6}, {"kinds": ("table_wise", "row_wise")}
    found = planned(10**10, lookups=local, config=cut, hot=10**6, cold=10**6)
    whole = planned(10**10, lookups=local, config={"kinds": ("table_wise",)}, hot=10**6, cold=10**6)
    assert found["hot"].kind == "row_wise"
    assert max(s.cost.seconds for s in found["hot"].shards) < whole["hot"].shards[0].cost.seconds


@pytest.mark.parametrize(
    ("rows", "lookups", "kind"),
    [
        (1000, 1e5, "data_parallel"),  # 6.4 MB of rows, the gradient 64 kB
        (10**6, 1e3, "table_wise"),  # 64 kB of rows, the gradient 64 MB
    ],
)
def test_a_table_is_replicated_where_its_gradient_is_less_than_its_rows(
    rows: int, lookups: float, kind: str
) -> None:
    found = planned(10**10, lookups={"a": lookups}, a=rows, b=rows)
    assert found["a"].kind == kind
    if kind == "data_parallel":
        assert [shard.size for shard in found["a"].shards] == [(1000, 16)] * 4
        assert found["a"].kernel == "dense"


def test_where_calls_are_dear_all_tables_of_a_collection_are_replicated() -> None:
    of = {"lookups": {"a": 1e5}, "a": 1000, "b": 10**5}  # b: a gradient of 6.4 MB for one row
    dear = dataclasses.replace(NODE, all_to_all_ms=10.0)
    assert {n: t.kind for n, t in planned(10**10, **of).items()} == {
        "a": "data_parallel", "b": "table_wise",
    }  # fmt: skip
    assert {t.kind for t in planned(10**10, node=dear, **of).values()} == {"data_parallel"}


def test_where_calls_are_dear_tables_of_a_collection_are_cut_alike() -> None:
    of = {"config": {"kinds": ("table_wise", "row_wise")}, "big": 10**6, "small": 1000}
    dear = dataclasses.replace(NODE, all_to_all_ms=10.0)
    kinds = [planned(30 * MB, node=node, **of)["small"].kind for node in (NODE, dear)]
    assert kinds == ["table_wise", "row_wise"]


def test_a_large_table_is_replicated_only_where_that_is_asked_for() -> None:
    of = {"lookups": {"a": 1e9}, "a": 2 * 10**6, "b": 1000}  # 128 MB, read as nothing else
    assert planned(10**12, **of)["a"].kind != "data_parallel"
    asked = {"table_kinds": {"a": "data_parallel"}}
    assert planned(10**12, config=asked, **of)["a"].kind == "data_parallel"


def test_kinds_that_are_fixed_are_kept() -> None:
    found = planned(10**9, config={"table_kinds": {"b": "row_wise"}}, a=1000, b=1000)
    assert [found[name].kind for name in "ab"] == ["table_wise", "row_wise"]


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(PlanError, match="unknown tables"):
        planned(10**9, config={"table_kinds": {"z": "row_wise"}}, a=1000)


def test_planning_twice_gives_the_same_plan() -> None:
    rows = {f"t{i}": 1000 * (i % 7 + 1) for i in range(40)}
    first, second = (planned(10**8, 16, **rows) for _ in range(2))
    assert first == second


def option(name: str, kind: str, kernel: str, size: int) -> Any:
    """As the planner's on one rank: every kind is one shard, and takes as long."""
    shard = SimpleNamespace(
        perf=SimpleNamespace(total=1.0), storage=SimpleNamespace(hbm=size, ddr=0)
    )
    return SimpleNamespace(
        path="bags", name=name, sharding_type=kind, compute_kernel=kernel, num_shards=1,
        shards=[shard],
    )  # fmt: skip


@pytest.mark.parametrize("kinds", [("table_wise", "row_wise"), ("row_wise", "table_wise")])
def test_what_is_alike_is_chosen_alike_in_whatever_order_it_comes(kinds: tuple[str, ...]) -> None:
    sizes = {"a": 1, "z": 9}
    proposer = CutProposer()
    proposer.load(
        [option(*of, size) for *of, size in (
            (name, kind, kernel, sizes[name])
            for name in sizes for kind in kinds for kernel in ("fused", CACHED)
        )]
    )  # fmt: skip
    proposals = [*iter(proposer.propose, None)]
    assert {o.sharding_type for proposal in proposals for o in proposal} == {"table_wise"}
    in_host = [[o.name for o in p if o.compute_kernel == CACHED] for p in proposals]
    assert in_host[0] == []
    assert in_host[1] == ["z"]  # the largest first, though nothing can be cut
    assert in_host[-1] == ["a", "z"]


def test_few_of_many_tables_are_cut_and_all_ranks_get_some() -> None:
    """300 tables and 64 ranks: TorchRec's own proposers would rate thousands of plans."""
    rows = {f"t{i}": 5000 for i in range(300)} | {"big": 10**8}
    cluster = Cluster(8, 8, NODE)
    loads = {n: TableLoad((Lookup(10.0),), RowFrequency.uniform(r)) for n, r in rows.items()}
    model, costs = tables(**rows), CostModel(cluster, loads, "adam")
    kinds = ShardingConfig(kinds=("table_wise", "row_wise"))
    found = placed(model, search_plan(model, costs, kinds, free=10**9, beside=1e-3), costs)
    kinds = {table.name: table.kind for table in found}
    assert kinds["big"] == "row_wise"
    assert list(kinds.values()).count("row_wise") <= 129
    assert {s.rank for t in found for s in t.shards} == {*range(64)}
