"""plan.json: an experiment on one or several clusters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import InputError
from sharding.catalogue import Cluster
from sharding.cluster_plan import DoesNotFit
from trainer.experiment import Experiment
from trainer.planning.log import Log
from trainer.planning.predict import Json, Situation, describe
from trainer.planning.remedies import remedies

FORMAT = 2
READABLE = (1, FORMAT)
"""Plans of format 1 say nothing of the calls of collectives; tables are the same."""
COPY_STEPS = 50
"""Steps between two renewals of the searches' copy, in the plan that is rated beside."""


def make_report(
    name: str,
    experiment: Experiment,
    log: Log,
    clusters: Sequence[Cluster],
    *,
    prices: Mapping[str, float],
    host: bool = False,
) -> Json:
    """What plan.json holds.

    Args:
        name: of the experiment.
        experiment: with all overrides.
        log: its data.
        clusters: to be compared.
        prices: of one node for an hour, by the node's name.
        host: large tables may lie in the host's memory.
    """
    unknown = {*prices} - {cluster.node.name for cluster in clusters}
    if unknown:
        raise InputError(
            f"--price names {sorted(unknown)}, but the clusters have nodes "
            f"{sorted({c.node.name for c in clusters})}: give NODE PRICE, as H100-80 98.3."
        )
    for cluster in clusters:
        if experiment.requests_per_batch < cluster.world_size:
            raise InputError(
                f"{cluster.name} has {cluster.world_size} ranks, but a batch has "
                f"{experiment.requests_per_batch} requests: give --batch "
                f"{cluster.world_size} or more."
            )
    return {
        "kind": "plan",
        "format": FORMAT,
        "experiment": name,
        "config": dataclasses.asdict(experiment),
        "log": {
            **log.facts,
            "name": log.name,
            "requests": log.requests,
            "candidates": log.candidates,
            "history": _history(log, experiment),
        },
        "plans": [
            _plan(experiment, log, cluster, prices.get(cluster.node.name), host)
            for cluster in clusters
        ],
    }


def _plan(
    experiment: Experiment, log: Log, cluster: Cluster, price: float | None, host: bool
) -> Json:
    situation = Situation.of(experiment, log, cluster)
    try:
        tables = situation.plan(host=host)
    except DoesNotFit as error:
        return {
            "cluster": cluster.name,
            "world_size": cluster.world_size,
            "node": dataclasses.asdict(cluster.node),
            "fits": False,
            "shortage": dataclasses.asdict(error.shortage),
            "fixed_bytes": situation.beside.fixed_bytes,
            "capacity": cluster.memory,
            "remedies": remedies(experiment, log, cluster, price),
        }
    entry = describe(situation, tables, price, host=host)
    return entry | {"with_copy": _with_copy(experiment, log, cluster, price, host)}


def _with_copy(
    experiment: Experiment, log: Log, cluster: Cluster, price: float | None, host: bool
) -> Json | None:
    """The same with searches that read a copy of the attention tables, where that may be had."""
    if cluster.world_size == 1 or experiment.replica_steps:
        return None
    try:
        copied = experiment.changed(replica_steps=COPY_STEPS)
        situation = Situation.of(copied, log, cluster)
        tables = situation.plan(host=host)
    except ValueError:  # a model whose searches read no rows; or the copies do not fit
        return None
    entry = describe(situation, tables, price, host=host, reasons=False)
    return {
        "replica_steps": COPY_STEPS,
        "bytes": situation.beside.copy,
        "samples_per_second": entry["samples_per_second"],
        "epoch_cost": entry["epoch_cost"],
    }


def _history(log: Log, experiment: Experiment) -> dict[str, Any]:
    """Of training requests, as kept: mean, median, 90 % and longest."""
    kept = sorted(log.kept(experiment.history_length).tolist())
    if not kept:
        return {"mean": 0.0, "p50": 0, "p90": 0, "max": 0}
    at = {"p50": len(kept) // 2, "p90": 9 * len(kept) // 10, "max": len(kept) - 1}
    return {"mean": sum(kept) / len(kept), **{name: kept[i] for name, i in at.items()}}


def read_report(path: Path) -> Json:
    """A plan.json, or of the folder that holds one.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = path / "plan.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"There is no plan to read in {file}: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != "plan":
        raise InputError(f"{file} is no plan of twofold plan: give its plan.json.")
    if content.get("format") not in READABLE:
        raise InputError(
            f"{file} is a plan of format {content.get('format')}; this version reads {READABLE}. "
            "Make it again by twofold plan."
        )
    _check_complete(file, content)
    return content


def _check_complete(file: Path, content: Json) -> None:
    wanted = {"experiment": str, "config": dict, "log": dict, "plans": list}
    missing = [key for key, kind in wanted.items() if not isinstance(content.get(key), kind)]
    for plan in content["plans"] if "plans" not in missing else ():
        has = plan if isinstance(plan, dict) else {}
        needed = ["cluster", "world_size", "fits"]
        needed += ["tables", "memory", "step", "samples_per_second"] if has.get("fits") else []
        missing += [f"{key} of a plan" for key in needed if key not in has]
    if missing:
        raise InputError(
            f"{file} is damaged: it lacks {', '.join(dict.fromkeys(missing))}. Edit tables and "
            "their shards alone, or make it again by twofold plan."
        )


def write_json(path: Path, content: Json) -> None:
    """At once: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def plan_for(report: Json, world_size: int) -> Json:
    """The plan of a report for so many ranks.

    Raises:
        InputError: there is none, more than one, or it does not fit.
    """
    matching = [plan for plan in report["plans"] if plan["world_size"] == world_size]
    there_are = ", ".join(
        f"{plan['cluster']} ({plan['world_size']} ranks)" for plan in report["plans"]
    )
    if not matching:
        raise InputError(
            f"The plan is for {there_are}, but this job has {world_size}. Start as many processes, "
            "or plan for a cluster of this size."
        )
    if len(matching) > 1:
        raise InputError(
            f"The plan has several clusters of {world_size} ranks: {there_are}. Delete all but one "
            'from its "plans", or plan for one.'
        )
    (plan,) = matching
    if not plan["fits"]:
        raise InputError(
            f"The model does not fit on {plan['cluster']}, so there is no plan to follow; "
            "twofold plan says what would make it fit."
        )
    return plan
