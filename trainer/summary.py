"""What is left of a run when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.store import EventStore, write_arrow
from trainer.checkpoint import Position
from trainer.experiment import Experiment
from trainer.meter import bound_by
from trainer.metrics import Metrics, Predictions, calibration_curve
from trainer.provenance import versions


def run_summary(
    name: str,
    experiment: Experiment,
    store: EventStore,
    position: Position,
    metrics: Metrics,
    world_size: int,
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """``summary.json``: ``metrics`` are of the test split, ``given`` is the plan followed."""
    predicted = {"predicted_samples_per_second": given["samples_per_second"]} if given else {}
    return {
        "model": name,
        "dataset": store.info.source,
        "split": "test",
        **metrics.to_json(),
        "train_samples": position.samples,
        "train_seconds": position.seconds,
        "samples_per_second": position.samples / max(position.seconds, 1e-9),
        **predicted,
        **bound_by(position),
        "loss_first": position.loss_first,
        "loss_last": position.loss_last,
        "steps": position.step,
        "best_step": position.best_step,
        "validation_auc": position.best_auc,
        "seed": experiment.seed,
        "world_size": world_size,
        "best_reachable_auc": store.info.best_auc,
        "versions": versions(),
    }


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Predictions of a split as one Arrow file, in the order of the requests."""
    write_arrow(
        file, {name: getattr(predictions, name) for name in predictions.__dataclass_fields__}
    )


def calibration(predictions: Predictions) -> dict[str, list]:
    """Of ``analysis.json``."""
    curve = calibration_curve(predictions.probability, predictions.label)
    return {name: values.tolist() for name, values in curve._asdict().items()}
