"""Models over fields: what each field is worth to them, and what their filters say of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.attention_map import correlations
from analysis.pair_norms import field_names, first_layer, pair_norms, partner_sums
from analysis.permutation import ReadField, permuted
from trainer.analyses.precision import precision
from trainer.analyses.subject import Subject, metrics_by_part, metrics_by_rarity, watch
from trainer.build import fields_of
from trainer.metrics import By, Predictions, log_loss, paired_difference
from trainer.predict import predict
from trainer.progress import Display

Json = dict[str, Any]
PERMUTATIONS = 3
"""Of each field, with the seeds 0, 1, ..."""


def measure(subject: Subject, display: Display) -> Json:
    """All measurements: collective. The numbers are whole on rank 0 only."""
    predictions = watch(subject, [], display)
    fields = fields_read(subject)
    losses = [_importance(subject, field, predictions, display) for field in fields]
    rounded = precision(subject, predictions, display)
    if not subject.ranks.first:
        return {}
    pairs = filter_norms(subject)
    return {
        "precision": rounded,
        "importance": {
            "permutations": PERMUTATIONS,
            "resampled": _resampled(predictions),
            "fields": losses,
        },
        "pairs": pairs and {**pairs, "spearman": _rank_correlation(pairs, losses)},
        "rarity": metrics_by_rarity(subject, predictions),
        "parts": metrics_by_part(subject, predictions),
    }


def fields_read(subject: Subject) -> list[ReadField]:
    """All that the model reads of a candidate and its request, in the order of its head."""
    events, context = fields_of(subject.experiment, subject.store)
    return [
        *(ReadField(field.name, "candidate") for field in events),
        *(ReadField(name, "context") for name, _ in context.fields),
        *(ReadField(name, "number") for name in context.numbers),
    ]


def _importance(
    subject: Subject, field: ReadField, predictions: Predictions, display: Display
) -> Json:
    """What the split loses when the field is permuted. Collective."""
    without = [
        predict(
            subject.state.model,
            subject.store,
            subject.split,
            subject.experiment,
            subject.ranks,
            change=permuted(subject.store, subject.split, field, seed),
            progress=lambda done, total, seed=seed: display.update(
                field.name, seed * total + done, PERMUTATIONS * total
            ),
        )
        for seed in range(PERMUTATIONS)
    ]
    if not subject.ranks.first:
        return {}
    return lost(field, predictions, without, subject.experiment.bootstrap)


def lost(
    field: ReadField, whole: Predictions, without: Sequence[Predictions], bootstrap: int
) -> Json:
    """Means over permutations, with the paired bootstrap's interval of the AUC.

    Args:
        field: which one was permuted.
        whole: predictions of the split as it is.
        without: of its permutations.
        bootstrap: resamples of whole users; of whole requests where there is one user.
    """
    auc, interval = paired_difference(
        [whole] * len(without), without, bootstrap=bootstrap, by=_resampled(whole)
    )
    cost = log_loss(whole.probability, whole.label)
    costs = [log_loss(p.probability, p.label) - cost for p in without]
    return {
        "field": field.name,
        "kind": field.kind,
        "auc_lost": finite(auc),
        "auc_lost_interval": [finite(end) for end in interval],
        "logloss_lost": float(np.mean(costs)),
    }


def _resampled(predictions: Predictions) -> By:
    return "user" if np.ptp(predictions.user) else "request"


def filter_norms(subject: Subject) -> Json | None:
    """Norms of the first layer's filters by pair of fields; None of a head without filters."""
    found = first_layer(subject.ranker)
    if found is None:
        return None
    norms = pair_norms(*found)
    _, context = fields_of(subject.experiment, subject.store)
    return {
        "fields": field_names(subject.ranker, context.numbers),
        "norms": norms.tolist(),
        "sums": partner_sums(norms).tolist(),
    }


def _rank_correlation(pairs: Json, fields: list[Json]) -> float | None:
    """Spearman's, of the sums of norms and the AUC that permuting loses."""
    losses = np.array([field["auc_lost"] for field in fields], dtype=float)
    return correlations(np.array(pairs["sums"]), losses)[1]


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
