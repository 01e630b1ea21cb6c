r"""Is a row better than its reference? AUC on the test requests, over seeds.

With s the seeds that both rows have, and w a resample of the test split's requests (or users),

.. math:: D(w) = \frac{1}{|S|} \sum_{s \in S} \big(\mathrm{AUC}_s(w) - \mathrm{AUC}^{ref}_s(w)\big)

* The **difference** is D of the split as it is: the mean over seeds of the paired difference.
* Its **interval** holds 95 % of D over resamples; in each one every model and every seed is judged
  on the same requests (or users), drawn whole with replacement. It is that of
  :func:`trainer.metrics.paired_difference` for several seeds: how much these very trainings owe to
  who happened to be in the split. Requests of one user are not independent, so the interval by
  users is the one that speaks of other users.
* It says nothing of other seeds. For that there is the **standard deviation** over seeds of the
  seeds' differences (n - 1 in the denominator); of their mean it is less by the root of n.

Each cell is resampled once, with the same draws, and the AUCs kept: a difference is then a
subtraction.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from data.errors import InputError
from data.store import numpy_columns, read_arrow
from trainer.metrics import CONFIDENCE, By, Interval, Predictions, Ranking
from trainer.sweep.jobs import write_json

RESAMPLES = 400
"""Behind an interval. More would only smooth its ends: an AUC takes a millisecond."""


class Resampled(NamedTuple):
    """AUC of one cell, on its test split and on resamples of it."""

    candidates: str
    """Digest of what was ranked: only equal ones can be compared."""
    auc: float
    by: dict[By, np.ndarray]
    """(RESAMPLES,) each."""


class Comparison(NamedTuple):
    """A row minus its reference."""

    auc: float
    by_request: Interval
    by_user: Interval
    seed_std: float
    """NaN for a single seed."""
    seeds: int


def compare(ours: Sequence[Resampled], theirs: Sequence[Resampled]) -> Comparison:
    """Differences seed by seed, see the formula above.

    Args:
        ours: one for each seed.
        theirs: those of the reference, of the same seeds in the same order.

    Raises:
        InputError: the cells do not hold the same candidates.
    """
    if len({cell.candidates for cell in (*ours, *theirs)}) > 1:
        raise InputError(
            "Cells of this sweep were tested on different candidates and cannot be compared. "
            "Train them again with --replace, or give another --out."
        )
    pairs = list(zip(ours, theirs, strict=True))
    differences = np.array([a.auc - b.auc for a, b in pairs])
    intervals = {
        by: interval(np.mean([a.by[by] - b.by[by] for a, b in pairs], axis=0))
        for by in get_args(By)
    }
    return Comparison(
        auc=float(differences.mean()),
        by_request=intervals["request"],
        # rows without users are all of one, whom every resample draws
        by_user=intervals["user"] if any(np.ptp(a.by["user"]) for a in ours) else (math.nan,) * 2,
        seed_std=standard_deviation(differences),
        seeds=len(pairs),
    )


def interval(values: np.ndarray) -> Interval:
    """The middle 95 %; resamples that lost a whole class are left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def standard_deviation(values: Sequence[float] | np.ndarray) -> float:
    """Over seeds, n - 1 in the denominator; NaN for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def resampled(run: Path, cache: Path) -> Resampled:
    """Resamples the test predictions of a run, or reads what an earlier call wrote.

    Args:
        run: run folder.
        cache: a JSON file; it holds for one content of the predictions.
    """
    file = run / "predictions-test.arrow"
    key = {"predictions": hashlib.sha256(file.read_bytes()).hexdigest(), "resamples": RESAMPLES}
    try:
        content = json.loads(cache.read_text())
    except (OSError, ValueError):
        content = {}
    if any(content.get(name) != value for name, value in key.items()):
        content = key | _resample(Predictions(**numpy_columns(read_arrow(file))))
        write_json(cache, content)
    by = {name: np.array(content[name]) for name in get_args(By)}
    return Resampled(content["candidates"], content["auc"], by)


def _resample(predictions: Predictions) -> dict[str, object]:
    order = np.argsort(predictions.request, kind="stable")
    probability, label, user, request = (
        np.asarray(column)[order]
        for column in (
            predictions.probability, predictions.label, predictions.user, predictions.request
        )
    )  # fmt: skip
    digest = hashlib.sha256()
    for column in (request, user, label):
        digest.update(column.astype(np.int64).tobytes())
    ranking = Ranking(probability, label)
    found: dict[str, object] = {
        "candidates": digest.hexdigest(),
        "auc": float(ranking.auc()[0]),
    }
    for by, unit in (("request", request), ("user", user)):
        units, unit_of = np.unique(unit, return_inverse=True)
        rng = np.random.default_rng(0)  # the same draws for every cell
        draws = (rng.integers(0, len(units), size=len(units)) for _ in range(RESAMPLES))
        counts = (np.bincount(drawn, minlength=len(units)).astype(np.float64) for drawn in draws)
        found[by] = [float(ranking.auc(count[unit_of])[0]) for count in counts]
    return found
