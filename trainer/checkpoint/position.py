"""Where training stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """Where training stands, and what it has found so far: with tables, parameters and optimizer
    states all that a run needs to go on as if it had never stopped.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Of the loader: the next batch."""
    samples: int = 0
    """Candidates trained on, until the last record."""
    seconds: float = 0.0
    """Spent training, evaluations and checkpoints excluded."""
    input_seconds: float = 0.0
    """Of those, waiting for batches; the mean over ranks."""
    communication_seconds: float = 0.0
    """Waiting for other ranks."""
    best_auc: float | None = None
    """On the validation split."""
    best_step: int = 0
    evaluations_since_best: int = 0
    learning_rate_scale: float = 1.0
    """Of all learning rates, to those that the run began with."""
    loss_first: float | None = None
    """Main loss of the first logged steps."""
    loss_last: float | None = None
    lookups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Rows of each table per step, until the first evaluation."""
    lookups_counted: dict[str, list[int]] = field(default_factory=dict)
    """Before that evaluation: rows looked up so far, without and with gradient, all ranks."""
    since_record: dict[str, Any] = field(default_factory=dict)
    """What ``Meter`` has summed since the last line of metrics.jsonl."""
    renewed_at: int = 0
    """Step after which the searches' copy of the keys was last renewed."""
    store: str = ""
    """Fingerprint of the event store: another one's ids mean something else."""
