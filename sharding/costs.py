"""What a shard of a table costs the rank that holds it: bytes, and seconds of a step.

TorchRec's own estimators know one pooling factor for each table and a backward pass for every
lookup. A table of a lifelong ranker is looked up in several ways in one step: every event of every
history without gradient, then some of them with it, one id a bag or many, weighted or not. These
estimates take the lookups as they are; docs/planning.md says where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sharding.catalogue import GB, Cluster
from sharding.frequency import RowFrequency
from sharding.replicated import DATA_PARALLEL

ID_BYTES = 8
"""An id, or the length of a bag."""
FLOAT_BYTES = 4
SORT_BYTES = 64
"""Moved to sort one id for an update: four passes over pairs of 8 bytes, read and written."""
CACHED_SHARE = 0.2
"""Of a table's rows that FBGEMM's cache on the device holds by default."""
WEIGHT_BYTES = {"float32": 4, "float16": 2}
"""Of a number of a table, by --tables.dtype."""
LEAST_READ = {"cuda": 32, "cpu": 64}
"""Bytes that reading a row costs at least: a sector, a cache line."""
DENSE_PASSES = 8
"""Times that a dense update reads or writes all numbers of a table: gradient cleared, divided,
squared, read and scaled; weights read and written; what lies between."""
STATE_FLOATS = {"rowwise_adagrad": 0, "adagrad": 1, "sgd": 0, "adam": 2}
"""Numbers of optimizer state for each number of a table."""
STATE_FLOATS_PER_ROW = {"rowwise_adagrad": 1}
"""And for each row of a shard."""


@dataclass(frozen=True)
class Lookup:
    """One way in which a step looks up a table, on one rank."""

    bags: float
    """Sums that are asked for."""
    rows: float = 1.0
    """Ids of a bag."""
    gradient: bool = True
    weighted: bool = False
    local: bool = False
    """Read where they are whole on this rank: nothing is sent, and no output is held."""


@dataclass(frozen=True)
class TableLoad:
    """All lookups of a table by one rank in one step."""

    lookups: tuple[Lookup, ...]
    frequency: RowFrequency

    def rows(self, *, gradient: bool) -> float:
        """Ids that are looked up with gradient, or without."""
        return sum(use.bags * use.rows for use in self.lookups if use.gradient == gradient)


@dataclass(frozen=True)
class ShardCost:
    """Of one shard, or the sum of several on one rank."""

    weights: float = 0.0
    """Bytes on the device."""
    optimizer: float = 0.0
    inputs: float = 0.0
    """Ids, lengths and weights that arrive."""
    outputs: float = 0.0
    """Rows or sums that leave, and their gradients."""
    host: float = 0.0
    """Bytes of the host's memory: of tables that are only cached on the device."""
    ids_exchange: float = 0.0
    """Seconds."""
    lookup: float = 0.0
    rows_exchange: float = 0.0
    gradients_exchange: float = 0.0
    update: float = 0.0
    rows_looked_up: float = 0.0
    """Of all ranks together, in this shard."""

    def __add__(self, other: ShardCost) -> ShardCost:
        return ShardCost(*(getattr(self, n) + getattr(other, n) for n in _PARTS))

    @property
    def device_bytes(self) -> int:
        """Of the device's memory."""
        return math.ceil(self.weights + self.optimizer + self.inputs + self.outputs)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(getattr(self, name) for name in TIMES)


_PARTS = [f.name for f in fields(ShardCost)]
TIMES = ("ids_exchange", "lookup", "rows_exchange", "gradients_exchange", "update")


def state_bytes(optimizer: str, rows: int, columns: int) -> int:
    """Of the state that FBGEMM keeps for a shard; one per row is kept by each shard of columns."""
    floats = rows * columns * STATE_FLOATS[optimizer] + rows * STATE_FLOATS_PER_ROW.get(
        optimizer, 0
    )
    return FLOAT_BYTES * floats


@dataclass(frozen=True)
class CostModel:
    """Of the shards of a model on a cluster."""

    cluster: Cluster
    loads: Mapping[str, TableLoad]
    """Of each table."""
    optimizer: str
    """One of STATE_FLOATS."""
    weight_bytes: int = FLOAT_BYTES
    """Of a number of a table: one of WEIGHT_BYTES."""

    def shard(
        self,
        table: str,
        kind: str,
        kernel: str,
        offset: tuple[int, int],
        size: tuple[int, int],
    ) -> ShardCost:
        """Of the part of ``table`` that begins at row and column ``offset``.

        Args:
            table: its name.
            kind: table_wise, row_wise, column_wise or data_parallel, whose every shard is whole.
            kernel: fused, dense where data_parallel, or fused_uvm_caching.
            offset: row, column.
            size: rows, columns.
        """
        rows, columns = size
        if kind == DATA_PARALLEL:
            return self._replica(table, rows, columns)
        load, node = self.loads[table], self.cluster.node
        share = load.frequency.share(offset[0], offset[0] + rows) if kind == "row_wise" else 1.0
        cached = load.frequency.hottest(CACHED_SHARE) if kernel != "fused" else 1.0
        row_bytes = columns * self.weight_bytes
        read = max(row_bytes, LEAST_READ[node.device])
        held = ShardCost(
            weights=rows * row_bytes, optimizer=state_bytes(self.optimizer, rows, columns)
        )
        if kernel != "fused":
            held = ShardCost(
                weights=CACHED_SHARE * held.weights + rows * (4 + 16 * CACHED_SHARE),
                host=held.weights + held.optimizer,
            )
        for use in load.lookups:
            held += self._lookup(use, share, columns, read, cached, load.frequency)
        return held

    def _replica(self, table: str, rows: int, columns: int) -> ShardCost:
        """Of a table that every rank holds: no id and no row is sent, but the gradient of all rows,
        looked up or not.
        """
        load, node = self.loads[table], self.cluster.node
        read = max(columns * self.weight_bytes, LEAST_READ[node.device])
        size = FLOAT_BYTES * rows * columns
        ids = {g: load.rows(gradient=g) for g in (False, True)}
        bags = {
            g: sum(use.bags for use in load.lookups if use.gradient == g and not use.local)
            for g in (False, True)
        }
        outputs = FLOAT_BYTES * columns * (bags[False] + 2 * bags[True])
        looked_up = sum(ids.values())
        trained = bool(ids[True])
        return ShardCost(
            weights=self.weight_bytes * rows * columns,
            optimizer=state_bytes(self.optimizer, rows, columns),
            outputs=outputs + size * trained,
            lookup=self._gather(looked_up, read, 1.0) + outputs / node.memory_gbs / GB,
            gradients_exchange=self.cluster.all_reduce_seconds(size) * trained,
            update=self._gather(ids[True], columns * FLOAT_BYTES + 2 * read, 1.0)
            + DENSE_PASSES * size * trained / node.memory_gbs / GB,
            rows_looked_up=looked_up,
        )

    def _lookup(
        self,
        use: Lookup,
        share: float,
        columns: int,
        read: float,
        cached: float,
        frequency: RowFrequency,
    ) -> ShardCost:
        node, ranks = self.cluster.node, self.cluster.world_size
        if use.local:
            found = use.bags * use.rows * share
            return ShardCost(lookup=self._gather(found, read, cached), rows_looked_up=found * ranks)
        bags, ids = ranks * use.bags, ranks * use.bags * use.rows * share
        inputs = ids * (ID_BYTES + FLOAT_BYTES * use.weighted) + bags * ID_BYTES
        outputs = bags * columns * FLOAT_BYTES
        cost = ShardCost(
            inputs=inputs,
            outputs=outputs,
            ids_exchange=self.cluster.exchange_seconds(inputs),
            lookup=self._gather(ids, read, cached) + outputs / node.memory_gbs / GB,
            rows_exchange=self.cluster.exchange_seconds(outputs),
            rows_looked_up=ids,
        )
        if not use.gradient:
            return cost
        distinct = min(frequency.distinct(ids / share) * share, ids) if share else 0.0
        moved = ids * (columns * FLOAT_BYTES + SORT_BYTES) + distinct * 2 * (
            read + state_bytes(self.optimizer, 1, columns)
        )
        return cost + ShardCost(
            outputs=outputs,
            gradients_exchange=self.cluster.exchange_seconds(outputs),
            update=moved / (node.update * node.memory_gbs * GB)
            + (1 - cached) * distinct * 2 * read / (node.host_gbs * GB),
        )

    def _gather(self, rows: float, read: float, cached: float) -> float:
        """Seconds; what the cache does not hold comes from the host."""
        node = self.cluster.node
        from_device = rows * read / (node.gather * node.memory_gbs * GB)
        return from_device + rows * (1 - cached) * read / (node.host_gbs * GB)


def to_json(cost: ShardCost) -> dict[str, Any]:
    """Bytes as whole numbers, seconds with their digits."""
    return {
        name: float(f"{getattr(cost, name):.6g}") if name in TIMES else round(getattr(cost, name))
        for name in _PARTS
    }
