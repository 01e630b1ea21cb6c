"""What a trained model loses in bfloat16, and how large its gradients are."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from analysis.precision import compare_precision
from data.batch import RankingBatch
from data.loader import RequestLoader
from modules.loss import ranking_losses
from modules.ranker import RankerOutput
from trainer.analyses.subject import Subject, watch
from trainer.metrics import Predictions, evaluate
from trainer.progress import Display
from trainer.state import forward

BATCHES = 8
"""Training batches whose gradients are looked at."""
DTYPE = torch.bfloat16


def precision(subject: Subject, predictions: Predictions, display: Display) -> dict[str, Any]:
    """Gradients of a few training batches in both types, and the judged split's AUC and log loss
    lost in bfloat16. Collective. Comes last: tables keep their rows, but not what their optimizer
    remembers.

    Args:
        predictions: those of the split in float32.
    """
    with torch.autocast(subject.ranks.device.type, DTYPE):
        rounded = watch(subject, [], display)
    metrics = [evaluate(of).to_json() for of in (predictions, rounded)]
    subject.state.scale_learning_rates(subject.experiment, 0.0)
    gradients = compare_precision(
        subject.state.model, first_batches(subject), lambda batch: _step(subject, batch), DTYPE
    )
    subject.state.scale_learning_rates(subject.experiment, subject.position.learning_rate_scale)
    return {
        **{name: [of[name] for of in metrics] for name in ("auc", "logloss")},
        "gradients": gradients,
    }


def first_batches(subject: Subject) -> list[RankingBatch]:
    """Of the training split, this rank's part."""
    loader = RequestLoader(
        subject.store,
        "train",
        requests_per_batch=subject.experiment.requests_per_batch,
        history_length=subject.experiment.history_length,
        time_gap=subject.experiment.time_gap,
        rank=subject.ranks.rank,
        world_size=subject.ranks.world_size,
        seed=subject.experiment.seed,
    )
    return [batch.to(subject.ranks.device) for batch in itertools.islice(loader, BATCHES)]


def _step(subject: Subject, batch: RankingBatch) -> tuple[RankerOutput, Tensor]:
    output = forward(subject.state.model, batch)
    losses = ranking_losses(
        output,
        batch.labels,
        subject.state.regularized,
        num_candidates=batch.global_candidates / subject.ranks.world_size,
        auxiliary_weight=subject.experiment.auxiliary_weight,
        l2=subject.experiment.l2,
    )
    return output, losses.total()
