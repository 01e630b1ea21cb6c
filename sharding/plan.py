"""Choosing a sharding plan, and saying what it is. Needs no GPU and no process group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import (
    ModuleSharder,
    ParameterSharding,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)

from sharding.errors import PlanError
from sharding.narrow import ROW_FLOATS
from sharding.weighted_bags import WeightedBags

ShardingKind = Literal["table_wise", "row_wise", "column_wise"]


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """What the planner may choose from."""

    kinds: tuple[ShardingKind, ...] = ("table_wise", "row_wise")
    """Whole tables (table_wise) are tried first. Column-wise is left out by default: a row-wise
    optimizer keeps a state per column shard, and such a checkpoint cannot be loaded under another
    plan."""
    table_kinds: dict[str, ShardingKind] = dataclasses.field(default_factory=dict)
    """Fixes single tables, e.g. attention_item row_wise."""
    memory_gib: float = 16.0
    """Memory of one rank that the planner may count on, in GiB."""

    def __post_init__(self) -> None:
        allowed = get_args(ShardingKind)
        if not self.kinds or {*self.kinds, *self.table_kinds.values()} - {*allowed}:
            raise ValueError(
                f"kinds and table_kinds take {', '.join(allowed)}, at least one; "
                f"got {self.kinds} and {self.table_kinds}."
            )
        if not 0 < self.memory_gib < math.inf:
            raise ValueError(f"memory_gib must be positive, got {self.memory_gib}.")


class SteadyEnumerator(EmbeddingEnumerator):
    """Lists a table's options in one order in every process. TorchRec's is that of a set of
    strings, which hash differently in each: ranks that plan for themselves would take different
    ones of options that cost the same.
    """

    def enumerate(
        self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]
    ) -> list[ShardingOption]:
        """All options, table by table."""
        options = super().enumerate(module, sharders)
        place: dict[tuple[str, str], int] = {}
        for option in options:
            place.setdefault((option.path, option.name), len(place))
        return sorted(
            options,
            key=lambda o: (place[o.path, o.name], o.sharding_type, o.compute_kernel),
        )


class FusedBagSharder(EmbeddingBagCollectionSharder):
    """Shards tables onto FBGEMM's fused kernels: never left dense, row-wise on CPUs too.

    TorchRec's own sharder offers row-wise for GPUs only, though its CPU kernels run it, and lets
    the planner keep a table dense and replicated.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """What the planner may try."""
        return [
            ShardingType.TABLE_WISE.value,
            ShardingType.ROW_WISE.value,
            ShardingType.COLUMN_WISE.value,
        ]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """The sharded collection; weights of a weighted one get gradients."""
        kind = WeightedBags if module.is_weighted() else ShardedEmbeddingBagCollection
        return kind(
            module=module,
            table_name_to_parameter_sharding=params,
            env=env,
            fused_params=self.fused_params,
            device=device,
            module_fqn=module_fqn,
        )


def choose_plan(
    model: nn.Module,
    *,
    world_size: int,
    local_world_size: int,
    device_type: str,
    lookups_per_rank: int,
    config: ShardingConfig,
) -> ShardingPlan:
    """The plan that TorchRec's planner expects to be fastest: of whole tables, if they fit.

    It is deterministic, so every rank plans for itself: with the planner's own collective form a
    failure on rank 0 would leave the others waiting.

    Args:
        model: with its tables on the meta device, or anywhere.
        world_size: number of ranks.
        local_world_size: ranks on one host.
        device_type: "cpu" or "cuda".
        lookups_per_rank: rows that one rank looks up in each table in one step.
        config: what is allowed.

    Raises:
        PlanError: nothing fits, or a table named in ``config`` does not exist.
    """
    configs = [t for _, bags in collections(model) for t in bags.embedding_bag_configs()]
    tables = {table.name: table.num_embeddings for table in configs}
    sizes = {table.name: table.num_embeddings * table.embedding_dim for table in configs}
    refuse_odd_widths(configs)
    refuse_unknown_tables(config, tables)
    capacity = int(config.memory_gib * 2**30)
    topology = Topology(
        world_size=world_size,
        local_world_size=local_world_size,
        compute_device=device_type,
        hbm_cap=capacity if device_type == "cuda" else 0,
        ddr_cap=capacity,
    )
    failure: PlannerError | None = None
    for allowed in _preferences(config, sizes):
        constraints = {
            name: ParameterConstraints(
                sharding_types=allowed_kinds(name, rows, world_size, allowed),
                compute_kernels=["fused"],
                pooling_factors=[1.0],
            )
            for name, rows in tables.items()
        }
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=lookups_per_rank,
            constraints=constraints,
            enumerator=SteadyEnumerator(topology, lookups_per_rank, constraints),
            storage_reservation=FixedPercentageStorageReservation(percentage=0.1),
            stats=[],
            debug=False,
        )
        try:
            return planner.plan(model, [FusedBagSharder()])
        except PlannerError as error:
            failure = error
    raise PlanError(
        f"The tables do not fit on {world_size} rank(s) with {config.memory_gib:g} GiB each. "
        "Ways out: more ranks, --sharding.memory-gib if the machine has more, narrower tables."
        f"\nTorchRec's planner says: {failure}"
    ) from failure


def _preferences(config: ShardingConfig, sizes: dict[str, int]) -> list[ShardingConfig]:
    """What to try, best first: whole tables, where they are allowed; then all but the largest one,
    two, four ... whole; then what ``config`` allows. ``sizes``: of each table.

    TorchRec's estimates know bags of many ids, which row-wise sharding pools before it sends them.
    Those of attention are bags of one: every rank would send a row, most of them zeros, for each
    id of all ranks.
    """
    if "table_wise" not in config.kinds:
        return [config]
    # a list, not a set: tables of one size stand in the same order on every rank
    free = sorted((name for name in sizes if name not in config.table_kinds), key=sizes.get)
    preferred = []
    cut = 0
    while cut < len(free):
        whole = dict.fromkeys(free[: len(free) - cut], "table_wise")
        preferred.append(dataclasses.replace(config, table_kinds=config.table_kinds | whole))
        cut = max(1, 2 * cut)
    return [*preferred, config]


def refuse_unknown_tables(config: ShardingConfig, tables: Iterable[str]) -> None:
    """Raises PlanError for a table of ``config`` that is none of ``tables``."""
    if unknown := config.table_kinds.keys() - {*tables}:
        raise PlanError(
            f"Sharding set for unknown tables {sorted(unknown)}; there are {list(tables)}."
        )


def refuse_odd_widths(tables: list[EmbeddingBagConfig]) -> None:
    """Raises PlanError where FBGEMM has no rows of a table's width."""
    for table in tables:
        if table.embedding_dim % ROW_FLOATS:
            upwards = ROW_FLOATS * math.ceil(table.embedding_dim / ROW_FLOATS)
            raise PlanError(
                f"Table {table.name} is {table.embedding_dim} wide, and FBGEMM's rows are "
                f"multiples of {ROW_FLOATS} floats: take {upwards}, or 1 or 2 (--fields...)."
            )


def allowed_kinds(
    name: str, rows: int, world_size: int, config: ShardingConfig
) -> list[ShardingKind]:
    """Without row-wise where it would leave a rank without a row: FBGEMM has no empty tables."""
    fixed = config.table_kinds.get(name)
    kinds = [fixed] if fixed else list(config.kinds)
    per_rank = math.ceil(rows / world_size)
    if per_rank * (world_size - 1) < rows:
        return kinds
    if fixed == "row_wise":
        raise PlanError(
            f"Table {name} has {rows} rows: row-wise over {world_size} ranks, {per_rank} each, "
            "leaves a rank without any. Leave it out of table_kinds, or make it table_wise."
        )
    return [kind for kind in kinds if kind != "row_wise"] or ["table_wise"]


def collections(model: nn.Module) -> list[tuple[str, EmbeddingBagCollection]]:
    """Path and module of every unsharded EmbeddingBagCollection."""
    return [(path, m) for path, m in model.named_modules() if isinstance(m, EmbeddingBagCollection)]


def describe_plan(
    model: nn.Module, plan: ShardingPlan, *, world_size: int, optimizer: str
) -> dict[str, Any]:
    """The plan as JSON: what ``RUN/plan.json`` holds. ``model`` is the unsharded one."""
    return {
        "world_size": world_size,
        "tables": [
            {
                "name": table.name,
                "rows": table.num_embeddings,
                "width": table.embedding_dim,
                "bytes": 4 * table.num_embeddings * table.embedding_dim,
                "sharding_type": plan.plan[path][table.name].sharding_type,
                "compute_kernel": plan.plan[path][table.name].compute_kernel,
                "optimizer": optimizer,
                "shards": [
                    {
                        "rank": shard.placement.rank(),
                        "offset": list(shard.shard_offsets),
                        "size": list(shard.shard_sizes),
                    }
                    for shard in plan.plan[path][table.name].sharding_spec.shards
                ],
            }
            for path, bags in collections(model)
            for table in bags.embedding_bag_configs()
        ],
    }
