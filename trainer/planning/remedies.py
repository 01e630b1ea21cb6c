"""The smallest changes that make a model fit, each computed, and what each costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from sharding.catalogue import Cluster
from sharding.cluster_plan import DoesNotFit
from trainer.experiment import Experiment
from trainer.planning.log import Log
from trainer.planning.predict import Json, Situation, describe

MOST_NODES = 1024
"""More are not tried."""
EXACT = 16


class Change(NamedTuple):
    """One thing done otherwise."""

    does: str
    """In words."""
    flags: str
    """Of the command line, where there are some."""
    cost: str
    """What is given up beside speed and money, which are computed."""
    experiment: Experiment
    cluster: Cluster
    host: bool = False


def remedies(experiment: Experiment, log: Log, cluster: Cluster, price: float | None) -> list[Json]:
    """For each kind of change the smallest that fits, the fastest first; kinds that do not help at
    any size are left out.
    """
    found = []
    for of_kind in (
        _cut_by_rows, _host_memory, _more_nodes, _optimizer, _narrower_attention, _narrower, _half,
        _smaller_batch,
    ):  # fmt: skip
        fitting = (_fitting(change, log, price) for change in of_kind(experiment, cluster))
        entry = next((entry for entry in fitting if entry), None)
        if entry:
            found.append(entry)
    return sorted(found, key=lambda entry: -entry["samples_per_second"])


def _fitting(change: Change, log: Log, price: float | None) -> Json | None:
    situation = Situation.of(change.experiment, log, change.cluster)
    try:
        tables = situation.plan(host=change.host)
    except DoesNotFit:
        return None
    entry = describe(situation, tables, price, host=change.host, reasons=False)
    return {
        "change": change.does,
        "flags": change.flags,
        "cost": change.cost,
        **{
            key: entry[key]
            for key in ("cluster", "samples_per_second", "price_per_hour", "epoch_cost")
        },
        "epoch_seconds": entry["epoch"]["seconds"],
    }


def _cut_by_rows(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    """Where the settings forbid it."""
    sharding = experiment.sharding
    if "row_wise" in sharding.kinds and not sharding.table_kinds:
        return
    kinds = tuple(dict.fromkeys((*sharding.kinds, "row_wise")))
    yield Change(
        "any table may be cut by rows",
        f"--sharding.kinds {' '.join(kinds)}, without --sharding.table-kinds",
        "each cut table sends rows from all ranks",
        experiment.changed(sharding=dataclasses.replace(sharding, kinds=kinds, table_kinds={})),
        cluster,
    )


def _host_memory(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    if cluster.node.device == "cuda":
        yield Change(
            "large tables on the host, cached on the device",
            "--host-memory",
            "what the cache misses comes over the host's link; not run here on a GPU yet",
            experiment,
            cluster,
            host=True,
        )


def _more_nodes(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    """One by one up to twice EXACT more, then in larger steps: of many, a few may be too many."""
    nodes = cluster.nodes + 1
    while nodes <= MOST_NODES and nodes * cluster.local_world_size <= experiment.requests_per_batch:
        larger = dataclasses.replace(cluster, nodes=nodes)
        yield Change(
            f"{nodes - cluster.nodes} more node{'s' if nodes - cluster.nodes > 1 else ''}",
            f"--cluster {larger.name}",
            "rent",
            experiment,
            larger,
        )
        nodes += max(1, (nodes - cluster.nodes) // EXACT)


def _optimizer(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    lighter = {"adam": ["adagrad", "rowwise_adagrad", "sgd"], "adagrad": ["rowwise_adagrad", "sgd"]}
    for kind in lighter.get(experiment.tables.kind, ["sgd"]):
        if kind == experiment.tables.kind:
            continue
        yield Change(
            f"{kind} for tables instead of {experiment.tables.kind}",
            f"--tables.kind {kind}",
            "another training: tune the learning rate and compare AUC",
            experiment.changed(tables=dataclasses.replace(experiment.tables, kind=kind)),
            cluster,
        )


def _narrower_attention(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    if experiment.model.sharing == "shared" or experiment.model.pooling == "none":
        return
    yield from _narrowed(experiment, cluster, ("attention_dim",), "attention tables")


def _narrower(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    yield from _narrowed(experiment, cluster, ("attention_dim", "representation_dim"), "all tables")


def _narrowed(
    experiment: Experiment, cluster: Cluster, names: tuple[str, ...], which: str
) -> Iterator[Change]:
    widths = experiment.fields
    if widths.attention_dims or widths.representation_dims:
        return  # set field by field: a rule for all would overrule what was meant
    width = max(getattr(widths, name) for name in names) // 2
    while width >= 4:
        new = {name: min(width, getattr(widths, name)) for name in names}
        flags = " ".join(f"--fields.{n.replace('_', '-')} {w}" for n, w in new.items())
        yield Change(
            f"{which} {width} wide",
            flags,
            "AUC: to be measured, e.g. by a sweep on a part of the log",
            experiment.changed(fields=dataclasses.replace(widths, **new)),
            cluster,
        )
        width //= 2


def _half(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    if experiment.tables.dtype == "float32":
        yield Change(
            "tables in float16",
            "--tables.dtype float16",
            "updates far smaller than their row are lost; compare AUC",
            experiment.changed(tables=dataclasses.replace(experiment.tables, dtype="float16")),
            cluster,
        )


def _smaller_batch(experiment: Experiment, cluster: Cluster) -> Iterator[Change]:
    batch = experiment.requests_per_batch // 2
    while batch >= cluster.world_size:
        yield Change(
            f"{batch:,} requests per batch",
            f"--batch {batch}",
            "more steps an epoch; tune the learning rates",
            experiment.changed(requests_per_batch=batch),
            cluster,
        )
        batch //= 2
