"""Choosing a sharding plan, and saying what it is. Needs no GPU and no process group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed._shard.sharding_spec import ShardMetadata
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import (
    ModuleSharder,
    ParameterSharding,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)

from sharding.errors import PlanError
from sharding.narrow import ROW_FLOATS
from sharding.replicated import DATA_PARALLEL, DENSE, ReplicableBags
from sharding.weighted_bags import WeightedBags

ShardingKind = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]
KERNELS = ("fused", DENSE)
"""Of tables in the device's memory; the dense one is that of data-parallel tables."""


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """What the planner may choose from."""

    kinds: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "data_parallel")
    """data_parallel is a replica on every rank, whose dense gradient is summed over ranks in each
    step: of small tables cheaper than the exchange of their rows. Column-wise is left out by
    default: a row-wise optimizer keeps a state per column shard, and such a checkpoint cannot be
    loaded under another plan."""
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
            DATA_PARALLEL,
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
        kind = WeightedBags if module.is_weighted() else ReplicableBags
        return kind(
            module=module,
            table_name_to_parameter_sharding=params,
            env=env,
            fused_params=self.fused_params,
            device=device,
            module_fqn=module_fqn,
        )


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
    """Without row-wise where it would leave a rank without a row: FBGEMM has no empty tables.
    Without replicas where there is but one rank.
    """
    fixed = config.table_kinds.get(name)
    kinds = [fixed] if fixed else list(config.kinds)
    if world_size == 1:
        kinds = [kind for kind in kinds if kind != DATA_PARALLEL] or kinds
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


def placed_shards(sharding: ParameterSharding) -> list[ShardMetadata]:
    """None of a replicated table, which all ranks hold."""
    return sharding.sharding_spec.shards if sharding.sharding_spec is not None else []


def describe_plan(
    model: nn.Module,
    plan: ShardingPlan,
    *,
    world_size: int,
    optimizer: str,
    weight_bytes: int = 4,
) -> dict[str, Any]:
    """The plan as JSON: what ``RUN/plan.json`` holds. ``model`` is the unsharded one,
    ``weight_bytes`` those of a number.
    """
    return {
        "world_size": world_size,
        "tables": [
            {
                "name": table.name,
                "rows": table.num_embeddings,
                "width": table.embedding_dim,
                "bytes": weight_bytes * table.num_embeddings * table.embedding_dim,
                "sharding_type": plan.plan[path][table.name].sharding_type,
                "compute_kernel": plan.plan[path][table.name].compute_kernel,
                "optimizer": optimizer,
                "shards": [
                    {
                        "rank": shard.placement.rank(),
                        "offset": list(shard.shard_offsets),
                        "size": list(shard.shard_sizes),
                    }
                    for shard in placed_shards(plan.plan[path][table.name])
                ],
            }
            for path, bags in collections(model)
            for table in bags.embedding_bag_configs()
        ],
    }
