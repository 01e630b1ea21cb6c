"""A sharding plan for a cluster of the catalogue: TorchRec's planner, with our costs of shards.

It enumerates, places and rates; what a shard holds and how long it takes is
:mod:`sharding.costs`; which few of all combinations are worth rating is :class:`CutProposer`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    Perf,
    PerfModel,
    PlannerError,
    ShardEstimator,
    ShardingOption,
    Storage,
)
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import ShardingPlan

from sharding.catalogue import Device, cluster_of_job
from sharding.collectives import calls_of_tables
from sharding.costs import FLOAT_BYTES, CostModel, Lookup, ShardCost, TableLoad
from sharding.errors import PlanError
from sharding.frequency import RowFrequency
from sharding.plan import (
    KERNELS,
    FusedBagSharder,
    ShardingConfig,
    ShardingKind,
    SteadyEnumerator,
    allowed_kinds,
    collections,
    placed_shards,
    refuse_odd_widths,
    refuse_unknown_tables,
)
from sharding.proposals import CACHED, CutProposer, is_cut
from sharding.replicated import DATA_PARALLEL, DENSE

CUTTABLE = 64
"""The costliest tables, and as many of the largest, may be cut; a rank holds more of the others
whole than cutting them could balance."""
CUT_MUST_GAIN = 0.05
"""Share of a step by which a plan with all tables cut must be faster than one with none: a cut
sends a row for each bag from every rank, mostly zeros, which loads a network that ranks share."""
SENT_MUST_GAIN = 0.15
"""Likewise, on CPUs, of one whose tables are all sharded over one whose tables are all replicated:
what is sent has to be sorted, packed and copied by the processors that train, which its bytes do
not say (one small table more that is sharded: 1.15 times the CPU of a step)."""


LARGEST_REPLICA = 2**26
"""Bytes of a table that is replicated unless it is asked for: each step makes a gradient as large,
whatever it has looked up."""
RESERVE = 0.1
"""Of a device's memory, for what is not counted: the driver's context, communication buffers,
fragmentation."""


@dataclass(frozen=True)
class PlacedShard:
    """A part of a table, and the rank that holds it."""

    rank: int
    offset: tuple[int, int]
    size: tuple[int, int]
    cost: ShardCost


@dataclass(frozen=True)
class PlacedTable:
    """A table as the plan has it."""

    name: str
    path: str
    """Of its collection in the model."""
    rows: int
    width: int
    kind: str
    kernel: str
    shards: tuple[PlacedShard, ...]


@dataclass(frozen=True)
class Shortage:
    """Why nothing fits, with every table cut as small as it goes."""

    table: str
    """The first that finds no room, the largest being placed first; empty where by bytes alone all
    find room, and yet the planner has placed none of its proposals."""
    missing: int
    """Bytes that a rank would need beyond what it has, for all tables."""
    needed: int
    """Bytes of tables on the fullest rank."""
    free: int
    """Bytes that a rank has for tables."""


class DoesNotFit(PlanError):
    """No plan fits."""

    def __init__(self, message: str, shortage: Shortage) -> None:
        super().__init__(message)
        self.shortage = shortage


def placed(model: nn.Module, plan: ShardingPlan, costs: CostModel) -> list[PlacedTable]:
    """The tables of a plan, with what each shard costs."""
    return [
        _placed(table, path, plan.plan[path][table.name], costs)
        for path, bags in collections(model)
        for table in bags.embedding_bag_configs()
    ]


def search_plan(
    model: nn.Module,
    costs: CostModel,
    config: ShardingConfig,
    *,
    free: int,
    beside: float,
    host: bool = False,
) -> ShardingPlan:
    """The plan whose busiest rank is done first, of those that were rated; see CUT_MUST_GAIN and
    SENT_MUST_GAIN.

    It is deterministic, so every rank plans for itself: with the planner's own collective form a
    failure on rank 0 would leave the others waiting.

    Args:
        model: with its tables on the meta device; narrow ones held wide (sharding/narrow.py).
        costs: of shards on the cluster.
        config: what is allowed; its ``memory_gib`` is not asked.
        free: bytes of a rank's device for tables and their buffers.
        beside: seconds of a step that have nothing to do with the plan.
        host: tables may lie in the host's memory, cached on the device.

    Raises:
        DoesNotFit: nothing that is allowed fits.
        PlanError: the config names unknown tables, or cuts one so that a rank has no row.
    """
    cluster = costs.cluster
    configs = [t for _, bags in collections(model) for t in bags.embedding_bag_configs()]
    sizes = {t.name: (t.num_embeddings, t.embedding_dim) for t in configs}
    refuse_odd_widths(configs)
    refuse_unknown_tables(config, sizes)
    kinds = {name: kinds_of(name, size, cluster.world_size, config) for name, size in sizes.items()}
    on_gpu = cluster.node.device == "cuda"
    topology = _topology(costs, free)
    constraints = _constraints(kinds, sizes, costs, host and on_gpu)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=1,
        constraints=constraints,
        enumerator=SteadyEnumerator(
            topology=topology,
            batch_size=1,
            constraints=constraints,
            estimator=_Estimator(costs),
        ),
        proposer=CutProposer(),
        performance_model=_StepModel(costs, beside),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        stats=[],
        debug=False,
    )
    try:
        with errors_alone(None):  # it warns of every replicated table
            return planner.plan(model, [FusedBagSharder()])
    except PlannerError as error:
        shortage = find_shortage(costs, sizes, kinds, free)
        told = _told(shortage, sizes, kinds)
        said = str(error).strip().splitlines()[0]
        raise DoesNotFit(
            f"The tables do not fit on {cluster.world_size} rank(s) of {cluster.name}, "
            f"{cluster.memory / 2**30:.3g} GiB each. {told}\nTorchRec's planner says: {said}",
            shortage,
        ) from error


def _told(
    shortage: Shortage, sizes: dict[str, tuple[int, int]], kinds: dict[str, list[str]]
) -> str:
    """Which table, which constraint, what to change: TorchRec names none of them."""
    ways_out = (
        "Ways out: more ranks, --sharding.memory-gib if the machine has more, narrower tables, a "
        "smaller batch; twofold plan computes what each brings."
    )
    if not shortage.table:
        return f"By bytes there is room, but no placement that was tried uses it. {ways_out}"
    rows, width = sizes[shortage.table]
    allowed = kinds[shortage.table]
    if "row_wise" not in allowed:
        ways_out = f"Let it be cut by rows (--sharding.kinds, --sharding.table-kinds). {ways_out}"
    return (
        f"{shortage.table}, {rows:,} x {width}, which may be {' or '.join(allowed)}, is the first "
        f"without room: the fullest rank would hold {shortage.needed / 2**30:.3g} GiB of tables "
        f"and has {shortage.free / 2**30:.3g} beside all else. {ways_out}"
    )


def kinds_of(
    name: str, size: tuple[int, int], world_size: int, config: ShardingConfig
) -> list[ShardingKind]:
    """Those of a table that the planner may take: see LARGEST_REPLICA."""
    kinds = allowed_kinds(name, size[0], world_size, config)
    if FLOAT_BYTES * size[0] * size[1] <= LARGEST_REPLICA:
        return kinds
    return [kind for kind in kinds if kind != DATA_PARALLEL] or kinds


def choose_plan(
    model: nn.Module,
    *,
    world_size: int,
    local_world_size: int,
    device_type: Device,
    lookups_per_rank: int,
    config: ShardingConfig,
) -> ShardingPlan:
    """:func:`search_plan` where nothing is known of a log: all rows are alike.

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
    cluster = cluster_of_job(world_size, local_world_size, device_type, config.memory_gib)
    loads = {
        table.name: TableLoad(
            (Lookup(lookups_per_rank),), RowFrequency.uniform(table.num_embeddings)
        )
        for _, bags in collections(model)
        for table in bags.embedding_bag_configs()
    }
    free = int((1 - RESERVE) * cluster.memory)
    costs = CostModel(cluster, loads, "rowwise_adagrad")
    return search_plan(model, costs, config, free=free, beside=0.0)


def find_shortage(
    costs: CostModel,
    sizes: dict[str, tuple[int, int]],
    kinds: dict[str, list[str]],
    free: int,
) -> Shortage:
    """What lacks room, tables being placed from the largest on, each in its smallest shards, the
    whole ones where most is free.
    """
    cuttable = cuttable_tables(costs, sizes)
    least = {
        name: _least_bytes(costs, name, size, kinds[name] if name in cuttable else ["table_wise"])
        for name, size in sizes.items()
    }
    used, first = np.zeros(costs.cluster.world_size), ""
    for name in sorted(least, key=lambda name: -max(least[name])):
        shards = least[name]
        if len(shards) == len(used):
            used += shards
        else:
            for shard in shards:
                used[used.argmin()] += shard
        if not first and used.max() > free:
            first = name
    needed = round(used.max())
    return Shortage(first, max(needed - free, 0), needed, free)


def _least_bytes(costs: CostModel, name: str, size: tuple[int, int], kinds: list[str]) -> list[int]:
    """Of each shard, in the kind whose largest shard is smallest."""
    found = [
        [
            costs.shard(name, kind, kernel_of(kind), *part).device_bytes
            for part in cut(kind, size, costs)
        ]
        for kind in kinds
    ]
    return min(found, key=lambda shards: (max(shards), sum(shards)))


def kernel_of(kind: str) -> str:
    """Of a table in the device's memory."""
    return DENSE if kind == DATA_PARALLEL else "fused"


def cut(
    kind: str, size: tuple[int, int], costs: CostModel
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Offset and size of the shards of a table, as TorchRec cuts it."""
    sizes, offsets = calculate_shard_sizes_and_offsets(
        torch.empty(size, device="meta"),
        costs.cluster.world_size,
        costs.cluster.local_world_size,
        kind,
    )
    return [(tuple(at), tuple(of)) for at, of in zip(offsets, sizes, strict=True)]


def _topology(costs: CostModel, free: int) -> Topology:
    cluster = costs.cluster
    on_gpu = cluster.node.device == "cuda"
    # it warns of every topology that its factory has not made
    with errors_alone("torchrec.distributed.planner.types"):
        return Topology(
            world_size=cluster.world_size,
            local_world_size=cluster.local_world_size,
            compute_device=cluster.node.device,
            hbm_cap=free if on_gpu else 0,
            ddr_cap=cluster.host_memory if on_gpu else free,
        )


@contextlib.contextmanager
def errors_alone(logger: str | None) -> Iterator[None]:
    """Silences the warnings of a logger; of None, the root's."""
    quiet = logging.getLogger(logger)
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        yield
    finally:
        quiet.setLevel(level)


def cuttable_tables(costs: CostModel, sizes: dict[str, tuple[int, int]]) -> set[str]:
    """Those that may be cut: with thousands of tables and hundreds of ranks, the shards of all
    combinations would be millions.
    """
    whole = {
        name: costs.shard(name, "table_wise", "fused", (0, 0), size) for name, size in sizes.items()
    }
    by_bytes = sorted(whole, key=lambda name: -whole[name].device_bytes)[:CUTTABLE]
    by_time = sorted(whole, key=lambda name: -whole[name].seconds)[:CUTTABLE]
    return {*by_bytes, *by_time}


def _constraints(
    kinds: dict[str, list[str]],
    sizes: dict[str, tuple[int, int]],
    costs: CostModel,
    host: bool,
) -> dict[str, ParameterConstraints]:
    cuttable = cuttable_tables(costs, sizes)

    def of(name: str) -> ParameterConstraints:
        stays_whole = name not in cuttable and "table_wise" in kinds[name]
        return ParameterConstraints(
            sharding_types=["table_wise"] if stays_whole else list(kinds[name]),
            compute_kernels=[*KERNELS, CACHED] if host and name in cuttable else [*KERNELS],
        )

    return {name: of(name) for name in sizes}


class _Estimator(ShardEstimator):
    """Gives the planner our costs: storage and time in one."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs

    def estimate(self, sharding_options: list[ShardingOption], *_: Any, **__: Any) -> None:
        on_gpu = self._costs.cluster.node.device == "cuda"
        for option in sharding_options:
            for shard in option.shards:
                cost = self._costs.shard(
                    option.name,
                    option.sharding_type,
                    option.compute_kernel,
                    tuple(shard.offset),
                    tuple(shard.size),
                )
                used = cost.device_bytes
                shard.storage = Storage(
                    hbm=used if on_gpu else 0, ddr=round(cost.host) if on_gpu else used
                )
                shard.perf = Perf(
                    fwd_compute=1e3 * cost.lookup,
                    fwd_comms=1e3 * (cost.ids_exchange + cost.rows_exchange),
                    bwd_compute=1e3 * cost.update,
                    bwd_comms=1e3 * cost.gradients_exchange,
                )


class _StepModel(PerfModel):
    """Milliseconds of the busiest rank, with a little added for tables that are cut."""

    def __init__(self, costs: CostModel, beside: float) -> None:
        self._costs, self._beside = costs, beside

    def rate(self, plan: list[ShardingOption]) -> float:
        cluster = self._costs.cluster
        milliseconds = [0.0] * cluster.world_size
        tables = ((option.path, option.name, option.sharding_type) for option in plan)
        calls = calls_of_tables(tables, self._costs.loads, cluster).seconds(cluster)
        for option in plan:
            for shard in option.shards:
                milliseconds[shard.rank] += shard.perf.total
        cut_share = sum(is_cut(option) for option in plan) / len(plan)
        sent_share = sum(option.sharding_type != DATA_PARALLEL for option in plan) / len(plan)
        if cluster.node.device != "cpu":
            sent_share = 0.0
        busiest = max(milliseconds) + 1e3 * (calls + self._beside)
        return busiest * (1 + CUT_MUST_GAIN * cut_share + SENT_MUST_GAIN * sent_share)


def _placed(table: Any, path: str, chosen: Any, costs: CostModel) -> PlacedTable:
    shards = [
        (s.placement.rank(), tuple(s.shard_offsets), tuple(s.shard_sizes))
        for s in placed_shards(chosen)
    ]
    if chosen.sharding_type == DATA_PARALLEL:
        size = (table.num_embeddings, table.embedding_dim)
        shards = [(rank, (0, 0), size) for rank in range(costs.cluster.world_size)]
    return PlacedTable(
        name=table.name,
        path=path,
        rows=table.num_embeddings,
        width=table.embedding_dim,
        kind=chosen.sharding_type,
        kernel=chosen.compute_kernel,
        shards=tuple(
            PlacedShard(
                rank,
                offset,
                size,
                costs.shard(table.name, chosen.sharding_type, chosen.compute_kernel, offset, size),
            )
            for rank, offset, size in shards
        ),
    )
