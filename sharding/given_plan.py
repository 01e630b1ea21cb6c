"""A plan that is given: read from plan.json, checked against the model, used as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec import EmbeddingBagConfig
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets, placement
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from sharding.errors import PlanError
from sharding.plan import ShardingKind, collections
from sharding.proposals import CACHED
from sharding.replicated import DATA_PARALLEL, DENSE

KINDS = get_args(ShardingKind)
_Shard = tuple[int, list[int], list[int]]  # rank, offset, size


def given_plan(
    model: nn.Module,
    entries: list[Mapping[str, Any]],
    *,
    world_size: int,
    local_world_size: int,
    device_type: str,
) -> ShardingPlan:
    """What TorchRec wants, from the tables of a plan.json, which may have been edited.

    A table that is row_wise needs no shards there: rank r holds the r-th equal part.

    Args:
        model: with its tables on the meta device; narrow ones held wide.
        entries: ``tables`` of a plan.
        world_size: number of ranks.
        local_world_size: ranks on one host.
        device_type: "cpu" or "cuda".

    Raises:
        PlanError: it is for other tables, or cannot be had on these ranks.
    """
    configs = {
        table.name: (path, table)
        for path, bags in collections(model)
        for table in bags.embedding_bag_configs()
    }
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise PlanError("The plan's tables must be a list of tables, each with name and shards.")
    of_plan = {str(entry.get("name")): entry for entry in entries}
    _check_same_tables(of_plan, {name: table for name, (_, table) in configs.items()})
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for name, (path, table) in configs.items():
        entry, kernel = of_plan[name], _kernel(name, of_plan[name], device_type)
        if entry.get("sharding_type") == DATA_PARALLEL:
            plan.setdefault(path, EmbeddingModuleShardingPlan())[name] = ParameterSharding(
                sharding_type=DATA_PARALLEL, compute_kernel=kernel, ranks=[*range(world_size)]
            )
            continue
        shards = _shards(table, entry, world_size, local_world_size)
        plan.setdefault(path, EmbeddingModuleShardingPlan())[name] = ParameterSharding(
            sharding_spec=EnumerableShardingSpec(
                [
                    ShardMetadata(
                        shard_offsets=offset,
                        shard_sizes=size,
                        placement=placement(device_type, rank, local_world_size),
                    )
                    for rank, offset, size in shards
                ]
            ),
            sharding_type=entry["sharding_type"],
            compute_kernel=kernel,
            ranks=[rank for rank, _, _ in shards],
        )
    return ShardingPlan(plan)


def _check_same_tables(
    of_plan: Mapping[str, Mapping[str, Any]], configs: Mapping[str, EmbeddingBagConfig]
) -> None:
    wrong = [f"{name} is not in the plan" for name in configs if name not in of_plan]
    wrong += [f"the model has no {name}" for name in of_plan if name not in configs]
    for name in configs.keys() & of_plan.keys():
        planned = of_plan[name].get("rows"), of_plan[name].get("width")
        table = configs[name]
        if planned != (table.num_embeddings, table.embedding_dim):
            wrong.append(
                f"{name} is {table.num_embeddings} x {table.embedding_dim}, in the plan "
                f"{planned[0]} x {planned[1]}"
            )
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise PlanError(
            f"The plan is of another model or store: {'; '.join(sorted(wrong)[:4])}{more}. "
            "Make one for this experiment and store: twofold plan EXPERIMENT --data STORE ..."
        )


def _kernel(name: str, entry: Mapping[str, Any], device_type: str) -> str:
    kernel = entry.get("compute_kernel")
    if entry.get("sharding_type") == DATA_PARALLEL:
        allowed = (DENSE,)
    else:
        allowed = ("fused", CACHED) if device_type == "cuda" else ("fused",)
    if kernel not in allowed:
        raise PlanError(
            f"The plan has kernel {kernel!r} for {name}; for a {entry.get('sharding_type')} table "
            f"on {device_type} there {'are' if len(allowed) > 1 else 'is'} {', '.join(allowed)}."
        )
    return kernel


def _shards(
    table: EmbeddingBagConfig, entry: Mapping[str, Any], world_size: int, local_world_size: int
) -> list[_Shard]:
    kind, name = entry.get("sharding_type"), table.name
    if kind not in KINDS:
        raise PlanError(
            f"The plan has sharding_type {kind!r} for {name}; there are {', '.join(KINDS)}."
        )
    size = (table.num_embeddings, table.embedding_dim)
    sizes, offsets = calculate_shard_sizes_and_offsets(
        torch.empty(size, device="meta"), world_size, local_world_size, kind
    )
    cut = [*zip(offsets, sizes, strict=True)]
    given = entry.get("shards") or []
    if kind == "row_wise" and not given:
        given = [{"rank": rank, "offset": at, "size": of} for rank, (at, of) in enumerate(cut)]
    try:
        shards = [(int(s["rank"]), [*s["offset"]], [*s["size"]]) for s in given]
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"The plan's shards of {name} need rank, offset and size.") from error
    if [(at, of) for _, at, of in shards] != cut:
        raise PlanError(
            f"The plan's shards of {name} are not those of a {kind} table of {size[0]} x "
            f"{size[1]} on {world_size} ranks, which are (offset, size) {_few(cut)}. Edit its "
            "ranks alone; or make it row_wise and leave its shards out."
        )
    ranks = [rank for rank, _, _ in shards]
    if kind == "row_wise" and ranks != [*range(world_size)]:
        raise PlanError(f"Row-wise shards of {name} lie on ranks 0 to {world_size - 1}, in order.")
    if not {*ranks} <= {*range(world_size)}:
        raise PlanError(f"The plan puts {name} on ranks {ranks}; there are {world_size} ranks.")
    if any(0 in of for _, _, of in shards):
        raise PlanError(
            f"{name} has {size[0]} rows: row_wise on {world_size} ranks leaves one without a row."
        )
    return shards


def _few(cut: list[tuple[list[int], list[int]]]) -> str:
    return f"{cut[:2]}{' ...' if len(cut) > 2 else ''}"
