"""What is analysed: a trained model, its data, and a pass over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analysis.rarity import rarity
from analysis.slices import Slice, slices
from data.batch import RankingBatch
from data.source import Split
from data.store import EventStore
from modules.ranker import LifelongRanker, RankerOutput
from trainer.checkpoint import Position
from trainer.experiment import Experiment
from trainer.metrics import Predictions, evaluate, expected_calibration_error
from trainer.predict import predict
from trainer.processes import Ranks
from trainer.progress import Display
from trainer.state import TrainState

Watcher = Callable[[RankerOutput, RankingBatch], None]
"""Sees each batch, and what the model said of it."""


@dataclass(frozen=True)
class Subject:
    """A trained model and its data."""

    experiment: Experiment
    store: EventStore
    state: TrainState
    position: Position
    ranks: Ranks
    split: Split

    @property
    def ranker(self) -> LifelongRanker:
        """The model itself, its tables sharded."""
        return self.state.model.module


def watch(subject: Subject, watchers: list[Watcher], display: Display) -> Predictions:
    """Predictions of the judged split; the watchers see each batch of this rank. Collective."""

    def each_batch(output: RankerOutput, batch: RankingBatch) -> None:
        for see in watchers:
            see(output, batch)

    return predict(
        subject.state.model,
        subject.store,
        subject.split,
        subject.experiment,
        subject.ranks,
        each_batch=each_batch,
        progress=lambda done, total: display.update(subject.split, done, total),
    )


def metrics_by_part(subject: Subject, predictions: Predictions) -> dict[str, Any]:
    """Metrics of parts of the split; of a table without users and items there are none."""
    if subject.store.flat:
        return {}
    return {
        name: [{"part": part.label, **_metrics_of(subject, predictions, part)} for part in parts]
        for name, parts in slices(subject.store, subject.split).items()
    }


def metrics_by_rarity(subject: Subject, predictions: Predictions) -> dict[str, Any] | None:
    """Metrics by how often the rarest id of a row has come; None where the store does not know."""
    found = rarity(subject.store, subject.split)
    return found and {
        "counted": found.counted,
        "bins": [
            {"count": part.label, **_metrics_of(subject, predictions, part)} for part in found.bins
        ],
    }


def _metrics_of(subject: Subject, predictions: Predictions, part: Slice) -> dict[str, Any]:
    columns = (getattr(predictions, name) for name in Predictions.__dataclass_fields__)
    chosen = Predictions(*(column[part.chosen] for column in columns))
    error = expected_calibration_error(chosen.probability, chosen.label)
    metrics = evaluate(chosen, bootstrap=subject.experiment.bootstrap)
    return {**metrics.to_json(), "expected_calibration_error": error}
