"""Plans: chosen without a process group, obeyed where fixed, and never dense."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from modules.tables import FieldConfig
from sharding.cluster_plan import choose_plan
from sharding.plan import (
    FusedBagSharder,
    PlanError,
    ShardingConfig,
    SteadyEnumerator,
    collections,
    describe_plan,
)
from tests.batches import fields

KINDS = ("table_wise", "row_wise", "column_wise")
TABLES = {
    f"{side}_{name}"
    for side, name in itertools.product(
        ("attention", "representation"), ("item", "category", "recency")
    )
}


def ranker(sharing: str = "decoupled", items: int | None = None, **widths: int) -> LifelongRanker:
    config = RankerConfig(sharing=sharing, hidden=(8,), auxiliary_hidden=(8,))
    chosen: tuple[FieldConfig, ...] = fields(**widths)
    if items:
        chosen = (dataclasses.replace(chosen[0], num_embeddings=items), *chosen[1:])
    return LifelongRanker(config, chosen, torch.device("meta"))


def plan(
    model: LifelongRanker, world_size: int, device: str = "cpu", lookups: int = 1000, **config: Any
) -> dict:
    """Table -> its entry of plan.json; so many rows of each are looked up."""
    chosen = choose_plan(
        model,
        world_size=world_size,
        local_world_size=world_size,
        device_type=device,
        lookups_per_rank=lookups,
        config=ShardingConfig(**config),
    )
    described = describe_plan(model, chosen, world_size=world_size, optimizer="sgd")
    return {table["name"]: table for table in described["tables"]}


def test_a_plan_for_64_ranks_needs_no_process_group() -> None:
    assert not dist.is_initialized()
    assert plan(ranker(), 64).keys() == TABLES


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("sharing", ["decoupled", "shared"])
@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_every_table_has_ranks_and_the_kernel_of_its_kind(
    world_size: int, sharing: str, device: str
) -> None:
    model = ranker(sharing)
    tables = plan(model, world_size, device)
    assert tables.keys() == {
        table.name for _, bags in collections(model) for table in bags.embedding_bag_configs()
    }
    for entry in tables.values():
        replicated = entry["sharding_type"] == "data_parallel"
        assert entry["compute_kernel"] == ("dense" if replicated else "fused")
        assert bool(entry["shards"]) != replicated
        assert not replicated or world_size > 1
        assert {shard["rank"] for shard in entry["shards"]} <= set(range(world_size))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_only_kind_allowed_is_the_one_taken(kind: str, world_size: int) -> None:
    tables = plan(ranker(attention_dim=64, representation_dim=64), world_size, kinds=(kind,))
    assert {entry["sharding_type"] for entry in tables.values()} == {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_fixed_for_one_table_leaves_the_others(kind: str) -> None:
    other = "table_wise" if kind == "row_wise" else "row_wise"
    tables = plan(ranker(), 2, kinds=(other,), table_kinds={"attention_item": kind})
    assert tables.pop("attention_item")["sharding_type"] == kind
    assert {entry["sharding_type"] for entry in tables.values()} == {other}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_cover_each_table_once(kind: str) -> None:
    wide = ranker(attention_dim=256, representation_dim=8)
    for entry in plan(wide, 4, kinds=(kind,)).values():
        covered = torch.zeros(entry["rows"], entry["width"])
        for shard in entry["shards"]:
            (row, column), (rows, columns) = shard["offset"], shard["size"]
            covered[row : row + rows, column : column + columns] += 1
        assert (covered == 1).all()


def test_column_wise_cuts_a_wide_table_by_columns() -> None:
    entry = plan(ranker(attention_dim=256), 2, kinds=("column_wise",))["attention_item"]
    assert [shard["size"] for shard in entry["shards"]] == [[40, 128], [40, 128]]


def test_small_tables_are_replicated_where_that_is_cheaper_and_large_ones_are_not() -> None:
    tables = plan(ranker(items=40_000_000), 2, lookups=10**7)
    assert {n for n, t in tables.items() if t["sharding_type"] == "data_parallel"} == {
        table for table in TABLES if "item" not in table
    }


def test_a_table_too_large_for_one_rank_is_cut_by_rows() -> None:
    # 40 million rows of 4 floats: 0.6 GiB
    entry = plan(ranker(items=40_000_000), 4, memory_gib=0.5)["attention_item"]
    assert entry["sharding_type"] == "row_wise"
    assert [shard["rank"] for shard in entry["shards"]] == [0, 1, 2, 3]


def test_tables_that_do_not_fit_are_refused_with_the_ways_out() -> None:
    with pytest.raises(PlanError) as error:
        plan(ranker(items=40_000_000), 2, memory_gib=0.25)
    message = str(error.value)
    assert "do not fit on 2 rank(s) of 1x2xCPU-SPR, 0.25 GiB each" in message
    assert "attention_item, 40,000,000 x 4, which may be table_wise or row_wise" in message
    assert message.splitlines()[-1].startswith("TorchRec's planner says: ")
    for way_out in ("more ranks", "--sharding.memory-gib", "narrower tables"):
        assert way_out in message


def test_a_kind_for_an_unknown_table_is_refused_with_the_tables_there_are() -> None:
    with pytest.raises(PlanError, match=r"unknown tables \['item'\].*'attention_item'"):
        plan(ranker(), 2, table_kinds={"item": "row_wise"})


def test_planning_twice_gives_the_same_plan() -> None:
    # every rank plans for itself
    assert plan(ranker(), 4) == plan(ranker(), 4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kinds": ()}, "kinds and table_kinds take"),
        ({"table_kinds": {"attention_item": "grid_shard"}}, "kinds and table_kinds take"),
        ({"memory_gib": 0.0}, "memory_gib must be positive"),
    ],
)
def test_a_config_that_allows_nothing_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardingConfig(**setting)


def test_row_wise_leaves_no_rank_without_a_row() -> None:
    """7 categories over 6 ranks, two each, would leave the last two ranks without any."""
    tables = plan(ranker(), 6, kinds=("row_wise",))
    assert tables["attention_category"]["sharding_type"] == "table_wise"
    assert tables["attention_item"]["sharding_type"] == "row_wise"
    assert (
        plan(ranker(), 4, kinds=("row_wise",))["attention_category"]["sharding_type"] == "row_wise"
    )
    with pytest.raises(PlanError, match="7 rows: row-wise over 6 ranks, 2 each"):
        plan(ranker(), 6, table_kinds={"attention_category": "row_wise"})


def test_a_width_that_fbgemm_has_no_rows_for_is_refused() -> None:
    with pytest.raises(PlanError, match=r"attention_item is 6 wide.*take 8, or 1 or 2"):
        plan(ranker(attention_dim=6), 1)


def test_of_tables_that_do_not_fit_whole_the_largest_is_cut() -> None:
    model = ranker(items=1_000_000, attention_dim=4, representation_dim=64)
    # representation_item has 244 MiB, attention_item 15: both ranks together have room for them
    tables = plan(model, 2, memory_gib=0.22)
    assert tables["representation_item"]["sharding_type"] == "row_wise"
    assert all(tables[name]["sharding_type"] != "row_wise" for name in TABLES if "item" not in name)


def test_options_stand_in_one_order_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order TorchRec's set of sharding types has in it."""
    model, listed = ranker(), EmbeddingEnumerator._filter_sharding_types
    constraints = {name: ParameterConstraints(sharding_types=list(KINDS)) for name in TABLES}
    topology = Topology(world_size=2, compute_device="cpu", ddr_cap=2**34)
    found: dict[type, list[list[tuple[str, str, str]]]] = {}
    for order in itertools.permutations(range(3)):

        def shuffled(*args: Any, order: tuple[int, ...] = order) -> list[str]:
            kinds = sorted(listed(*args))
            return [kinds[place] for place in order]

        monkeypatch.setattr(EmbeddingEnumerator, "_filter_sharding_types", shuffled)
        for kind in (EmbeddingEnumerator, SteadyEnumerator):
            options = kind(topology, 8, constraints).enumerate(model, [FusedBagSharder()])
            named = [(o.name, o.sharding_type, o.compute_kernel) for o in options]
            found.setdefault(kind, []).append(named)
    assert len({name for name, _, _ in found[SteadyEnumerator][0]}) == len(TABLES)
    assert all(named == found[SteadyEnumerator][0] for named in found[SteadyEnumerator])
    assert any(named != found[EmbeddingEnumerator][0] for named in found[EmbeddingEnumerator])
