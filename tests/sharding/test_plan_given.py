"""Given plans: followed to the letter, and refused where they are for something else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sharding.errors import PlanError
from sharding.given_plan import given_plan
from sharding.plan import describe_plan
from tests.sharding.test_plan_bytes import MIXED, as_json, planned, ranker

KINDS = ("table_wise", "row_wise", "column_wise")
PLAN = as_json(planned(2, "sgd", kinds=KINDS, table_kinds=MIXED))


def given(
    entries: list[dict[str, Any]], world_size: int = 2, device: str = "cpu"
) -> list[dict[str, Any]]:
    model = ranker()
    plan = given_plan(
        model, entries, world_size=world_size, local_world_size=world_size, device_type=device
    )
    return describe_plan(model, plan, world_size=world_size, optimizer="sgd")["tables"]


def edited(table: str, **changes: Any) -> list[dict[str, Any]]:
    entries = copy.deepcopy(PLAN)
    for entry in entries:
        if entry["name"] == table:
            entry.update(changes)
    return entries


def test_a_plan_is_followed_to_the_letter() -> None:
    followed = {entry["name"]: entry for entry in given(PLAN)}
    for entry in PLAN:
        assert entry.items() <= followed[entry["name"]].items()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_table_may_be_moved(rank: int) -> None:
    shard = {"rank": rank, "offset": [0, 0], "size": [7, 8]}
    entries = edited("attention_category", shards=[shard])
    found = {entry["name"]: entry["shards"] for entry in given(entries)}
    assert found["attention_category"] == [shard]


def test_a_table_made_row_wise_needs_no_shards() -> None:
    entries = edited("attention_category", sharding_type="row_wise", shards=[])
    found = {entry["name"]: entry["shards"] for entry in given(entries)}
    assert [shard["size"] for shard in found["attention_category"]] == [[4, 8], [3, 8]]


def test_a_replicated_table_has_no_shards() -> None:
    entries = edited("attention_category", sharding_type="data_parallel", compute_kernel="dense")
    found = {entry["name"]: entry for entry in given(entries)}["attention_category"]
    assert (found["sharding_type"], found["shards"]) == ("data_parallel", [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 8}, "attention_category is 7 x 8, in the plan 8 x 8"),
        ({"name": "elsewhere"}, "attention_category is not in the plan; the model has no elsew"),
        ({"compute_kernel": "fused_uvm_caching"}, "on cpu there is fused"),
        ({"compute_kernel": "dense"}, "kernel 'dense'"),
        ({"sharding_type": "grid_shard"}, "sharding_type 'grid_shard'"),
        ({"sharding_type": "data_parallel"}, "kernel 'fused' for attention_category.*is dense"),
        ({"sharding_type": "row_wise"}, "not those of a row_wise table"),
        ({"shards": []}, "not those of a table_wise table"),
        ({"shards": [{"rank": 0}]}, "need rank, offset and size"),
        ({"shards": [{"rank": 2, "offset": [0, 0], "size": [7, 8]}]}, "there are 2 ranks"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        given(edited("attention_category", **changes))


@pytest.mark.parametrize("entries", [{}, [3], None])
def test_tables_that_are_none_are_refused(entries: Any) -> None:
    with pytest.raises(PlanError, match="must be a list of tables"):
        given(entries)


def test_another_world_size_is_refused() -> None:
    with pytest.raises(PlanError, match="not those of a row_wise table of 40 x 8 on 4 ranks"):
        given(edited("attention_item"), world_size=4)


def test_row_wise_that_leaves_a_rank_without_a_row_is_refused() -> None:
    entries = edited("attention_category", sharding_type="row_wise", shards=[])
    entries = [
        entry | {"sharding_type": "table_wise", "shards": [
            {"rank": 0, "offset": [0, 0], "size": [entry["rows"], entry["width"]]}
        ]} if entry["name"] != "attention_category" else entry
        for entry in entries
    ]  # fmt: skip
    with pytest.raises(PlanError, match="leaves one without a row"):
        given(entries, world_size=6)


def test_a_cached_table_is_for_gpus() -> None:
    entries = edited("attention_category", compute_kernel="fused_uvm_caching")
    found = {entry["name"]: entry for entry in given(entries, device="cuda")}
    assert found["attention_category"]["compute_kernel"] == "fused_uvm_caching"


def test_torchrec_is_handed_kernel_and_device_of_a_cached_table() -> None:
    """It has run on no GPU: this is as far as a CPU gets."""
    entries = edited("attention_item", compute_kernel="fused_uvm_caching")
    plan = given_plan(ranker(), entries, world_size=2, local_world_size=2, device_type="cuda")
    table = plan.plan["tables.attention"]["attention_item"]
    assert (table.compute_kernel, table.sharding_type) == ("fused_uvm_caching", "row_wise")
    places = [str(shard.placement) for shard in table.sharding_spec.shards]
    assert places == ["rank:0/cuda:0", "rank:1/cuda:1"]
    others = plan.plan["tables.attention"]["attention_category"]
    assert others.compute_kernel == "fused"
