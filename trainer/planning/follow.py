"""Training by a given plan: read within the process group, checked against the model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError
from trainer.experiment import Experiment
from trainer.planning.report import plan_for, read_report
from trainer.processes import Ranks
from trainer.run_folder import leaves

PLANNED = (
    "model", "fields", "history_length", "time_gap", "requests_per_batch", "replica_steps",
    "replica_dtype",
)  # fmt: skip
"""Settings that change what a step looks up, holds or sends, beside the tables' optimizer."""


def read_plan(path: Path, ranks: Ranks, name: str, experiment: Experiment) -> dict[str, Any]:
    """The plan for this job out of a plan.json. What it was made for and is otherwise here, so that
    its prediction is of another training, is told on the first rank.

    Raises:
        InputError: there is none, it is for another number of ranks, or for tables with another
            optimizer or of another type, whose bytes are others.
    """
    report = read_report(path)
    config, tables = report["config"], experiment.tables
    planned = {"dtype": "float32", **config.get("tables", {})}
    for key in ("kind", "dtype"):
        if planned.get(key) != getattr(tables, key):
            raise InputError(
                f"{path} is planned for --tables.{key} {planned.get(key)}, and this training has "
                f"{getattr(tables, key)}: its tables take other bytes. Train with --tables.{key} "
                f"{planned.get(key)}, or plan with --tables.{key} {getattr(tables, key)}."
            )
    plan = plan_for(report, ranks.world_size)
    if ranks.first and (differs := _differences(report, name, experiment)):
        more = f" and {len(differs) - 6} more" if len(differs) > 6 else ""
        print(
            f"Note: {path} was made for other settings (planned, here): "
            f"{'; '.join(differs[:6])}{more}. It is followed; its prediction is not of this run.",
            file=sys.stderr,
        )
    return plan


def _differences(report: Mapping[str, Any], name: str, experiment: Experiment) -> list[str]:
    planned = {key: report["config"].get(key) for key in PLANNED}
    # as JSON has them: lists for tuples
    here = json.loads(json.dumps({key: dataclasses.asdict(experiment)[key] for key in PLANNED}))
    before, now = leaves(planned), leaves(here)
    found = [f"experiment {report['experiment']}, {name}"] if report["experiment"] != name else []
    return found + [
        f"{key} {before.get(key)}, {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def prediction(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps of a plan beside its tables, to be compared with what is measured."""
    keys = ("cluster", "samples_per_second", "memory", "step")
    return {key: plan[key] for key in keys if key in plan}


def compared(predicted: Mapping[str, Any], samples_per_second: float) -> str:
    """Predicted and measured speed in a sentence."""
    expected = predicted["samples_per_second"]
    return (
        f"Predicted for {predicted['cluster']}: {expected:,.0f} samples/s; measured: "
        f"{samples_per_second:,.0f}, {samples_per_second / expected:.2f} of it."
    )
