"""How many collectives a training step makes: each takes its time however little it carries, since
it has to be started and waits for the slowest rank. What they carry is in sharding/costs.py.

An all-gather counts as an all-to-all, and a reduce-scatter as the all-reduce that gloo makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from modules.context import Numbers
from sharding.catalogue import Cluster
from sharding.costs import FLOAT_BYTES, Lookup, TableLoad
from sharding.replicated import DATA_PARALLEL

ROW_WISE = "row_wise"
BUCKET = 25 * 2**20
"""Bytes of dense gradients that DDP sums in one all-reduce, as TorchRec sets it."""


@dataclass(frozen=True)
class Calls:
    """Collectives of one step; every rank makes the same."""

    all_to_all: int = 0
    all_reduce: int = 0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.all_to_all + other.all_to_all, self.all_reduce + other.all_reduce)

    def seconds(self, cluster: Cluster) -> float:
        """Of a step."""
        return cluster.call_seconds(self.all_to_all, self.all_reduce)


NONE = Calls()


def calls_of_tables(
    tables: Iterable[tuple[str, str, str]], loads: Mapping[str, TableLoad], cluster: Cluster
) -> Calls:
    """Of all tables of a plan.

    Args:
        tables: path of its collection, name and sharding type of each.
        loads: lookups of each; tables of a collection are looked up together.
        cluster: that the plan is for.
    """
    if cluster.world_size == 1:
        return NONE
    kinds: dict[str, set[str]] = {}
    lookups: dict[str, tuple[Lookup, ...]] = {}
    for path, name, kind in tables:
        kinds.setdefault(path, set()).add(kind)
        lookups[path] = loads[name].lookups
    gloo = cluster.node.device == "cpu"
    return sum((calls_of_collection(kinds[p], lookups[p], gloo=gloo) for p in kinds), start=NONE)


def calls_of_collection(kinds: set[str], lookups: Iterable[Lookup], *, gloo: bool) -> Calls:
    """Of one collection, forward and backward.

    Args:
        kinds: sharding types of its tables; TorchRec looks up those of each type apart.
        lookups: of any of its tables. Those with gradient are one call of the collection together.
        gloo: the backend, not NCCL.
    """
    calls = NONE
    for gradient in (False, True):
        uses = [use for use in lookups if use.gradient == gradient and not use.local]
        if not uses:
            continue
        if gloo and not gradient:
            if kinds - {DATA_PARALLEL}:  # how many ids, ids, rows: sharding/search_tables.py
                calls += Calls(all_to_all=3)
            continue
        weighted = any(use.weighted for use in uses)
        for kind in kinds - {DATA_PARALLEL}:
            calls += _sharded_lookup(kind, gradient=gradient, weighted=weighted)
        if ROW_WISE in kinds and gloo:
            calls += Calls(all_reduce=1)  # ranks agree on a number of bags (sharding/apply.py)
    if DATA_PARALLEL in kinds and any(use.gradient for use in lookups):
        calls += Calls(all_reduce=1)  # gradients of all replicas of the collection
    return calls


def _sharded_lookup(kind: str, *, gradient: bool, weighted: bool) -> Calls:
    """Of the tables of one sharding type in one call of their collection."""
    calls = Calls(all_to_all=3 + weighted)  # sizes of what comes, lengths of bags, ids, weights
    calls += Calls(all_reduce=1) if kind == ROW_WISE else Calls(all_to_all=1)  # rows, or parts
    if gradient:
        calls += Calls(all_to_all=1 + weighted)  # gradients of rows, of weights
    return calls


def calls_of_dense(module: nn.Module, parameters: int) -> Calls:
    """Of what every rank holds alike.

    Args:
        module: whose batch norms take statistics over all ranks.
        parameters: numbers outside of tables.
    """
    norms = sum(isinstance(child, nn.BatchNorm1d) for child in module.modules())
    of_data = sum(isinstance(child, Numbers) for child in module.modules())
    buckets = math.ceil(FLOAT_BYTES * parameters / BUCKET)
    # statistics forward, and backward their gradient but where what they are of has none
    return Calls(all_reduce=2 * norms - of_data + buckets)
