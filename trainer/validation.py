"""What an evaluation changes in a training, beside its metrics."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from data.store import EventStore
from sharding.search_tables import refresh_replica
from trainer.checkpoint import Position
from trainer.experiment import Experiment
from trainer.predict import probe_replica
from trainer.processes import Ranks
from trainer.state import TrainState


def renew_replica(state: TrainState, position: Position) -> None:
    """Of the keys that searches read."""
    refresh_replica(state.model)
    position.renewed_at = position.step


def judge_replica(
    state: TrainState, position: Position, experiment: Experiment, store: EventStore, ranks: Ranks
) -> dict[str, Any]:
    """What searches miss in their copy of the keys, as old as it is and renewed, for a record.
    Evaluation goes on with the new one.
    """
    if not experiment.replica_steps:
        return {}
    probe = partial(probe_replica, state.model, store, "val", experiment, ranks)
    old = {"replica_age": position.step - position.renewed_at, "replica_recall": probe()}
    renew_replica(state, position)
    return old | {"replica_recall_renewed": probe()}


def reduce_learning_rates(state: TrainState, position: Position, experiment: Experiment) -> str:
    """Where validation is on a plateau; says so."""
    patience, old = experiment.plateau_patience, position.learning_rate_scale
    if not patience or position.evaluations_since_best % patience:
        return ""
    new = max(old * experiment.plateau_factor, experiment.plateau_floor)
    if math.isclose(new, old):
        return ""
    position.learning_rate_scale = new
    state.scale_learning_rates(experiment, new)
    return f"  learning rates times {new / old:.3g}"
