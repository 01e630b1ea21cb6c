"""One experiment on one cluster: the plan, and what it predicts, as plan.json has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torchrec.distributed.types import ShardingPlan

from modules.ranker import LifelongRanker
from sharding.apply import kinds_for
from sharding.catalogue import Cluster
from sharding.cluster_plan import PlacedTable, cuttable_tables, placed, search_plan
from sharding.collectives import Calls, calls_of_tables
from sharding.costs import WEIGHT_BYTES, CostModel, TableLoad
from sharding.narrow import hold_narrow_tables
from sharding.plan import ShardingConfig
from sharding.replicated import DATA_PARALLEL
from trainer.build import build_ranker
from trainer.experiment import Experiment
from trainer.planning.alternatives import rejected
from trainer.planning.load import RankBatch, table_loads
from trainer.planning.log import Log
from trainer.planning.rank_costs import RankCost, rank_cost

Json = dict[str, Any]

MEMORY = ("weights", "optimizer", "inputs", "outputs", "activations", "copy", "dense", "reserve")
"""Parts of a rank's memory, in the order in which they are shown."""
TIME = (
    "ids_exchange", "lookup", "rows_exchange", "search", "dense", "gradients_exchange", "update",
    "all_reduce", "copy", "calls", "overhead",
)  # fmt: skip
"""Parts of a step, in about the order in which they happen; none is taken to overlap another."""


@dataclasses.dataclass(frozen=True)
class Situation:
    """All that a plan is made of; the planner has yet to run."""

    experiment: Experiment
    log: Log
    cluster: Cluster
    ranker: LifelongRanker
    batch: RankBatch
    loads: dict[str, TableLoad]
    costs: CostModel
    beside: RankCost

    @classmethod
    def of(cls, experiment: Experiment, log: Log, cluster: Cluster) -> Situation:
        """Builds the model on the meta device.

        Raises:
            InputError: the experiment does not go with the log.
        """
        ranker = build_ranker(experiment, log, world_size=cluster.world_size)
        hold_narrow_tables(ranker)
        return cls.around(ranker, experiment, log, cluster)

    @classmethod
    def around(
        cls, ranker: LifelongRanker, experiment: Experiment, log: Log, cluster: Cluster
    ) -> Situation:
        """With a model that is there: tables on the meta device, narrow ones held wide."""
        ranks = cluster.world_size
        batch = RankBatch.of(experiment, log, ranks)
        loads = table_loads(ranker, experiment, log, batch, ranks)
        weight_bytes = WEIGHT_BYTES[experiment.tables.dtype]
        costs = CostModel(cluster, loads, experiment.tables.kind, weight_bytes)
        beside = rank_cost(ranker, experiment, loads, batch, cluster)
        return cls(experiment, log, cluster, ranker, batch, loads, costs, beside)

    @property
    def sharding(self) -> ShardingConfig:
        """What the planner may choose from."""
        return kinds_for(self.experiment.tables, self.experiment.sharding)

    @property
    def free(self) -> int:
        """Bytes of a device that tables may have."""
        return max(self.cluster.memory - self.beside.fixed_bytes, 0)

    def calls(self, tables: Sequence[PlacedTable]) -> Calls:
        """Collectives of a step by a plan."""
        placed_as = ((table.path, table.name, table.kind) for table in tables)
        return calls_of_tables(placed_as, self.loads, self.cluster) + self.beside.calls

    def plan(self, *, host: bool = False) -> list[PlacedTable]:
        """Runs the planner.

        Raises:
            DoesNotFit: it does not.
        """
        return placed(self.ranker, self.search(host=host), self.costs)

    def search(self, *, host: bool = False) -> ShardingPlan:
        """The same as TorchRec has it.

        Raises:
            DoesNotFit: it does not.
        """
        return search_plan(
            self.ranker,
            self.costs,
            self.sharding,
            free=self.free,
            beside=self.beside.seconds,
            host=host,
        )


def describe(
    situation: Situation,
    tables: Sequence[PlacedTable],
    price: float | None,
    *,
    host: bool,
    reasons: bool = True,
) -> Json:
    """A cluster's entry of plan.json.

    Args:
        situation: what was planned.
        tables: the plan.
        price: of one node for an hour, in any currency.
        host: tables were allowed in the host's memory.
        reasons: say why no table is sharded otherwise.
    """
    cluster = situation.cluster
    memory, step = _memory(situation, tables), _step(situation, tables)
    seconds = np.sum([*step.values()], axis=0)
    slowest = float(seconds.max())
    candidates = situation.experiment.requests_per_batch * situation.log.candidates
    steps = -(-situation.log.requests // situation.experiment.requests_per_batch)
    epoch = steps * slowest
    hourly = None if price is None else price * cluster.nodes
    return {
        "cluster": cluster.name,
        "world_size": cluster.world_size,
        "node": dataclasses.asdict(cluster.node),
        "fits": True,
        "host_memory": host,
        "tables": _tables(situation, tables, host=host, reasons=reasons),
        "memory": {
            "capacity": cluster.memory,
            "host_capacity": cluster.host_memory,
            "parts": {name: _whole(memory[name]) for name in MEMORY},
            "host": _whole(memory["host"]),
        },
        "step": {
            "seconds": slowest,
            "parts": {name: _digits(step[name]) for name in TIME},
            "imbalance": float(seconds.max() / seconds.mean()),
            "calls": dataclasses.asdict(situation.calls(tables)),
        },
        "samples_per_second": candidates / slowest,
        "epoch": {"steps": steps, "seconds": epoch},
        "price_per_hour": hourly,
        "epoch_cost": None if hourly is None else hourly * epoch / 3600,
    }


def _memory(situation: Situation, tables: Sequence[PlacedTable]) -> dict[str, np.ndarray]:
    """Bytes of every rank, (W,) each."""
    ranks, beside = situation.cluster.world_size, situation.beside
    parts = {n: np.zeros(ranks) for n in ("weights", "optimizer", "inputs", "outputs", "host")}
    for shard in (shard for table in tables for shard in table.shards):
        for name, values in parts.items():
            values[shard.rank] += getattr(shard.cost, name)
    equal = ("activations", "copy", "dense", "reserve")
    return parts | {name: np.full(ranks, getattr(beside, name)) for name in equal}


def _step(situation: Situation, tables: Sequence[PlacedTable]) -> dict[str, np.ndarray]:
    """Seconds of every rank, (W,) each."""
    ranks, beside = situation.cluster.world_size, situation.beside
    parts = {name: np.zeros(ranks) for name in TIME}
    for shard in (shard for table in tables for shard in table.shards):
        for name in ("ids_exchange", "lookup", "rows_exchange", "gradients_exchange", "update"):
            parts[name][shard.rank] += getattr(shard.cost, name)
    for name in ("search", "dense", "all_reduce", "copy", "overhead"):
        parts[name] += getattr(beside, f"{name}_seconds")
    parts["calls"] += situation.calls(tables).seconds(situation.cluster)
    return parts


def _tables(
    situation: Situation, tables: Sequence[PlacedTable], *, host: bool, reasons: bool
) -> list[Json]:
    described = [_table(situation, table) for table in tables]
    if reasons:
        cuttable = cuttable_tables(situation.costs, {t.name: (t.rows, t.width) for t in tables})
        for entry, table in zip(described, tables, strict=True):
            entry["rejected"] = rejected(situation, table, host=host, cuttable=cuttable)
    return described


def _table(situation: Situation, table: PlacedTable) -> Json:
    load = situation.loads[table.name]
    work = [shard.cost.rows_looked_up for shard in table.shards]
    return {
        "name": table.name,
        "rows": table.rows,
        "width": table.width,
        "bytes": situation.costs.weight_bytes * table.rows * table.width,
        "sharding_type": table.kind,
        "compute_kernel": table.kernel,
        "optimizer": situation.experiment.tables.kind,
        "optimizer_bytes": round(sum(s.cost.optimizer for s in table.shards)),
        "device_bytes": round(sum(s.cost.device_bytes for s in table.shards)),
        "host_bytes": round(sum(s.cost.host for s in table.shards)),
        "rows_looked_up": {
            "with_gradient": round(load.rows(gradient=True)),
            "without_gradient": round(load.rows(gradient=False)),
        },
        "seconds": max(shard.cost.seconds for shard in table.shards),
        "imbalance": max(work) * len(work) / sum(work) if sum(work) else 1.0,
        "shards": [
            {"rank": s.rank, "offset": list(s.offset), "size": list(s.size)}
            for s in (table.shards if table.kind != DATA_PARALLEL else ())
        ],
    }


def _whole(values: np.ndarray) -> list[int]:
    return [round(value) for value in values.tolist()]


def _digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
