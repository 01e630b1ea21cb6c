"""A sharding plan for a cluster of the catalogue: TorchRec's planner, with our costs of shards.

It enumerates, places and rates; what a shard holds and how long it takes is
:mod:`sharding.costs`; which few of all combinations are worth rating is :class:`CutProposer`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    Perf,
    PerfModel,
    PlannerError,
    Proposer,
    ShardEstimator,
    ShardingOption,
    Storage,
)
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets

from sharding.costs import CostModel, ShardCost
from sharding.errors import PlanError
from sharding.plan import (
    FusedBagSharder,
    ShardingConfig,
    allowed_kinds,
    collections,
    refuse_odd_widths,
    refuse_unknown_tables,
)

CUTTABLE = 64
"""The costliest tables, and as many of the largest, may be cut; a rank holds more of the others
whole than cutting them could balance."""
CUT_MUST_GAIN = 0.05
"""Share of a step by which a plan with all tables cut must be faster than one with none: a cut
sends a row for each bag from every rank, mostly zeros, which loads a network that ranks share."""
CACHED = "fused_uvm_caching"
"""FBGEMM's kernel for tables of the host's memory with a cache on the device."""


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


def plan_on(
    model: nn.Module,
    costs: CostModel,
    config: ShardingConfig,
    *,
    free: int,
    beside: float,
    host: bool = False,
) -> list[PlacedTable]:
    """The plan whose busiest rank is done first, of those that were rated; see CUT_MUST_GAIN.

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
    kinds = {
        name: allowed_kinds(name, rows, cluster.world_size, config)
        for name, (rows, _) in sizes.items()
    }
    on_gpu = cluster.node.device == "cuda"
    topology = _topology(costs, free)
    constraints = _constraints(kinds, sizes, costs, host and on_gpu)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=1,
        constraints=constraints,
        enumerator=EmbeddingEnumerator(
            topology=topology,
            batch_size=1,
            constraints=constraints,
            estimator=_Estimator(costs),
        ),
        proposer=CutProposer(),
        performance_model=_StepModel(cluster.world_size, beside),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        stats=[],
        debug=False,
    )
    try:
        chosen = planner.plan(model, [FusedBagSharder()])
    except PlannerError as error:
        shortage = find_shortage(costs, sizes, kinds, free)
        raise DoesNotFit(
            f"The tables do not fit on {cluster.name}: {shortage.table} is the first without room.",
            shortage,
        ) from error
    return [
        _placed(table, path, chosen.plan[path][table.name], costs)
        for path, bags in collections(model)
        for table in bags.embedding_bag_configs()
    ]


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
        [costs.shard(name, kind, "fused", *part).device_bytes for part in cut(kind, size, costs)]
        for kind in kinds
    ]
    return min(found, key=max)


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
    constructed = logging.getLogger("torchrec.distributed.planner.types")
    level = constructed.level
    constructed.setLevel(logging.ERROR)  # it warns of every topology that its factory has not made
    try:
        return Topology(
            world_size=cluster.world_size,
            local_world_size=cluster.local_world_size,
            compute_device=cluster.node.device,
            hbm_cap=free if on_gpu else 0,
            ddr_cap=cluster.host_memory if on_gpu else free,
        )
    finally:
        constructed.setLevel(level)


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
            compute_kernels=["fused", CACHED] if host and name in cuttable else ["fused"],
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
    """Seconds of the busiest rank, with a little added for tables that are cut."""

    def __init__(self, world_size: int, beside: float) -> None:
        self._world_size, self._beside = world_size, beside

    def rate(self, plan: list[ShardingOption]) -> float:
        milliseconds = [0.0] * self._world_size
        for option in plan:
            for shard in option.shards:
                milliseconds[shard.rank] += shard.perf.total
        cut_share = sum(option.num_shards > 1 for option in plan) / len(plan)
        busiest = max(milliseconds) + 1e3 * self._beside
        return busiest * (1 + CUT_MUST_GAIN * cut_share)


class CutProposer(Proposer):
    """Whole tables first; then with one, two, four ... of them cut, from the largest on, and from
    the one that takes longest on. Last, the same with the largest in the host's memory.

    TorchRec's own proposers go through the options of one table at a time: with thousands of
    tables, each proposal of seconds, they end nowhere near a plan.
    """

    def load(
        self, search_space: list[ShardingOption], enumerator: EmbeddingEnumerator | None = None
    ) -> None:
        """Takes the options that there are."""
        self._proposals = iter(_proposals(search_space))

    def propose(self) -> list[ShardingOption] | None:
        """The next, or None."""
        return next(self._proposals, None)

    def feedback(self, *_: Any, **__: Any) -> None:
        """Nothing depends on it."""


def _proposals(search_space: Sequence[ShardingOption]) -> Iterator[list[ShardingOption]]:
    options: dict[tuple[str, str], list[ShardingOption]] = {}
    for option in search_space:
        options.setdefault((option.path, option.name), []).append(option)
    on_device = {key: [o for o in of if o.compute_kernel != CACHED] for key, of in options.items()}
    whole = {
        key: min(of, key=lambda o: (o.num_shards, _plainest(o))) for key, of in on_device.items()
    }
    parted = {
        key: min(
            (o for o in of if o is not whole[key] and o.num_shards > 1), key=_fastest, default=None
        )
        for key, of in on_device.items()
    }
    from_largest = sorted(whole, key=lambda key: (-_bytes(whole[key]), key))
    by_bytes = [key for key in from_largest if parted[key] is not None]
    by_time = sorted(by_bytes, key=lambda key: (-_busiest(whole[key]), key))
    yield [*whole.values()]
    for order in (by_bytes, by_time):
        for count in _doubling(len(order)):
            yield [*(whole | {key: parted[key] for key in order[:count]}).values()]
    cached = {
        key: min((o for o in of if o.compute_kernel == CACHED), key=_fastest, default=None)
        for key, of in options.items()
    }
    largest = [key for key in from_largest if cached[key] is not None]
    for count in _doubling(len(largest)):
        in_host = {key: cached[key] for key in largest[:count]}
        yield [*(whole | in_host).values()]
        yield [*(whole | {key: parted[key] for key in by_bytes} | in_host).values()]


def _doubling(last: int) -> Iterator[int]:
    """1, 2, 4, ... and ``last``."""
    count = 1
    while count < last:
        yield count
        count *= 2
    if last:
        yield last


def _busiest(option: ShardingOption) -> float:
    return max(shard.perf.total for shard in option.shards)


def _plainest(option: ShardingOption) -> tuple[bool, float, str]:
    """TorchRec lists the options in the order of a set of strings, another in every process: of
    those that are alike, as all are on one rank, the same must be taken each time.
    """
    return option.sharding_type != "table_wise", _busiest(option), option.sharding_type


def _fastest(option: ShardingOption) -> tuple[float, bool, str]:
    return _busiest(option), option.sharding_type != "table_wise", option.sharding_type


def _bytes(option: ShardingOption) -> int:
    return max(shard.storage.hbm + shard.storage.ddr for shard in option.shards)


def _placed(table: Any, path: str, chosen: Any, costs: CostModel) -> PlacedTable:
    shards = [
        (s.placement.rank(), tuple(s.shard_offsets), tuple(s.shard_sizes))
        for s in chosen.sharding_spec.shards
    ]
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
