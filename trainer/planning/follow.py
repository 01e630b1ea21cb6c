"""Training by a given plan: read before the process group is there, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.planning.report import plan_for, read_report


def read_plan(path: Path, world_size: int) -> dict[str, Any]:
    """The plan for this job out of a plan.json.

    Raises:
        InputError: there is none, or it is for another number of ranks.
    """
    return plan_for(read_report(path), world_size)


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
