"""Quality of predicted click probabilities.

Shapes: n candidates (samples), P positives and N negatives of them, G groups, R requests, U users.
Candidates of one request are dependent (they share a user, a moment and often one click), so
intervals resample whole requests. Requests of one user are dependent too: where the question is how
a model does for other users, not for other requests of these, resample whole users.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from data.errors import InputError

CLIP = 1e-7
"""Log loss is taken of probabilities in [CLIP, 1 - CLIP]. A float32 sigmoid saturates to exactly 1
just beyond; a candidate that is certain and wrong then costs 16.1 nats, not infinity."""
CONFIDENCE = 0.95

Interval = tuple[float, float]
By = Literal["request", "user"]
"""What a resample draws whole: all candidates of a request, or all requests of a user."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of n candidates, and what happened. The order does not matter."""

    probability: np.ndarray
    """(n,) in [0, 1]."""
    label: np.ndarray
    """(n,) 0 or 1."""
    user: np.ndarray
    """(n,) integer id of the user."""
    request: np.ndarray
    """(n,) integer id of the request."""

    def __post_init__(self) -> None:
        shapes = {name: np.shape(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(set(shapes.values())) != 1 or len(shapes["label"]) != 1:
            raise ValueError(f"Predictions must be four arrays of one shape (n,), got {shapes}.")
        if not shapes["label"][0]:
            raise InputError("No predictions to evaluate: the split has no candidates.")
        _check_values(self.probability, self.label)


@dataclass(frozen=True)
class Metrics:
    """NaN where a metric has no meaning: see :func:`evaluate`."""

    auc: float
    auc_interval: Interval
    """95 % bootstrap interval over requests, or over users."""
    gauc: float
    """AUC within each user, averaged with the user's candidates as weight; NaN of a single user,
    as all rows of a table without users are: it would be the AUC again."""
    logloss: float
    """Nats per candidate."""
    normalized_entropy: float
    """Log loss over that of always predicting the base rate; below 1 is better than that."""
    calibration: float
    """Sum of probabilities over sum of labels; 1 is calibrated, above 1 promises too much."""
    samples: int
    requests: int
    users: int
    positives: int

    def to_json(self) -> dict[str, Any]:
        """A dict for :func:`json.dumps`: JSON has no NaN, so what is undefined is null."""
        values = asdict(self)
        values["auc_interval"] = [_or_none(bound) for bound in self.auc_interval]
        return {name: _or_none(value) for name, value in values.items()}


class Difference(NamedTuple):
    """AUC of one model minus AUC of another on the same requests; of several seeds, the mean."""

    auc: float
    interval: Interval


class CalibrationCurve(NamedTuple):
    """Bins of candidates in ascending order of probability."""

    predicted: np.ndarray
    """(bins,) mean probability."""
    observed: np.ndarray
    """(bins,) share of positives."""
    count: np.ndarray
    """(bins,) candidates."""


def evaluate(
    predictions: Predictions, *, bootstrap: int = 200, seed: int = 0, by: By = "request"
) -> Metrics:
    """All metrics of one split.

    With positives or negatives alone nothing can be ranked and the base rate has no entropy: AUC,
    its interval, GAUC and normalized entropy are NaN (null in JSON). A tiny validation split is no
    reason to lose a training run. Calibration without positives is NaN for the same reason.

    Args:
        predictions: every candidate of the split once
        bootstrap: resamples for the AUC interval; 0 leaves the interval NaN
        seed: of the resamples
        by: what a resample draws whole
    """
    probability = np.asarray(predictions.probability, dtype=np.float64)
    label = np.asarray(predictions.label, dtype=np.float64)
    order = np.argsort(predictions.probability)  # of float32 faster than of float64
    ranking = Ranking(probability, label, order=order)
    resampled = [ranking.auc(weight)[0] for weight in _resamples(predictions, by, bootstrap, seed)]
    logloss = log_loss(probability, label)
    positives, users = int(label.sum()), _distinct(predictions.user)
    base_entropy = _entropy(positives / len(label))
    return Metrics(
        auc=float(ranking.auc()[0]),
        auc_interval=_interval(resampled),
        gauc=grouped_auc(probability, label, predictions.user, order) if users > 1 else math.nan,
        logloss=logloss,
        normalized_entropy=logloss / base_entropy if base_entropy else math.nan,
        calibration=float(probability.sum() / positives) if positives else math.nan,
        samples=len(label),
        requests=_distinct(predictions.request),
        users=users,
        positives=positives,
    )


def paired_difference(
    a: Predictions | Sequence[Predictions],
    b: Predictions | Sequence[Predictions],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    by: By = "request",
) -> Difference:
    """AUC of ``a`` minus AUC of ``b``, with a 95 % bootstrap interval over requests or users.

    Both models are judged on the same resamples, so luck they share cancels: the interval is
    narrower than the two single intervals suggest.

    Of several trainings of each model, one a seed, the differences are averaged, within each
    resample too. The interval is then that of the mean over these very trainings: it says nothing
    of how much another seed would move it.

    Args:
        a: predictions of one model, or of its trainings with several seeds
        b: as many of the other model
        bootstrap: resamples
        seed: of the resamples
        by: what a resample draws whole

    Raises:
        InputError: they do not all hold the same candidates. Requests may come in any order, but
            the candidates of one request must come in the same order in all.
    """
    ours, theirs = ([p] if isinstance(p, Predictions) else list(p) for p in (a, b))
    if len(ours) != len(theirs) or not ours:
        raise InputError(
            f"Models are compared seed by seed: got {len(ours)} trainings of one and "
            f"{len(theirs)} of the other. Give as many of each, at least one."
        )
    models = [_by_request(predictions) for predictions in (*ours, *theirs)]
    for other in models[1:]:
        _check_same_candidates(models[0], other)
    rankings = [Ranking(np.asarray(p.probability), np.asarray(p.label)) for p in models]

    def mean_difference(weight: np.ndarray | None = None) -> float:
        auc = np.array([ranking.auc(weight)[0] for ranking in rankings])
        return float(auc[: len(ours)].mean() - auc[len(ours) :].mean())

    resamples = _resamples(models[0], by, bootstrap, seed)
    return Difference(mean_difference(), _interval([mean_difference(w) for w in resamples]))


def calibration_curve(
    probability: np.ndarray, label: np.ndarray, bins: int = 20
) -> CalibrationCurve:
    """Mean probability against share of positives in bins of equally many candidates.

    Counts differ by at most one; fewer candidates than ``bins`` give one bin each. Candidates of
    equal probability may fall on both sides of an edge.
    """
    if bins <= 0:
        raise ValueError(f"bins must be positive, got {bins}.")
    _check_values(probability, label)
    n = len(label)
    bins = min(bins, n)
    order = np.argsort(probability, kind="stable")
    edges = np.arange(bins + 1) * n // max(bins, 1)
    count = np.diff(edges)

    def bin_means(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.asarray(values, np.float64)[order], edges[:-1]) / count

    return CalibrationCurve(bin_means(probability), bin_means(label), count)


def expected_calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 10) -> float:
    r"""Mean distance of what was predicted from what happened, in bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \, \lvert \bar y_b - \bar p_b \rvert

    with the share of positives and the mean probability of the n_b candidates whose probability is
    in [b / bins, (b + 1) / bins), 1 in the last one (Naeini et al. 2015, Guo et al. 2017,
    https://arxiv.org/abs/1706.04599). NaN of no candidates.
    """
    if bins <= 0:
        raise ValueError(f"bins must be positive, got {bins}.")
    _check_values(probability, label)
    probability = np.asarray(probability, np.float64)
    number = np.minimum((probability * bins).astype(np.int64), bins - 1)
    apart = np.bincount(number, np.asarray(label) - probability, minlength=bins)
    return float(np.abs(apart).sum() / len(label)) if len(label) else math.nan


def binomial_interval(share: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(2, bins) Wilson's 95 % interval of shares of ``count`` candidates: never leaves [0, 1]."""
    z = 1.96
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.stack([center - half, center + half])


def log_loss(probability: np.ndarray, label: np.ndarray, clip: float = CLIP) -> float:
    """Mean of -ln(probability of what happened), in float64, probabilities kept off 0 and 1."""
    happened = np.where(np.asarray(label) > 0, probability, 1 - np.asarray(probability, np.float64))
    return float(-np.log(np.clip(happened, clip, 1 - clip)).mean())


def grouped_auc(
    probability: np.ndarray, label: np.ndarray, user: np.ndarray, order: np.ndarray | None = None
) -> float:
    """GAUC: AUC within each user, averaged over users with the number of candidates as weight.

    A user with clicks only or none cannot be ranked and is left out with all its candidates, as
    in the DIN paper's definition (https://arxiv.org/abs/1706.06978), whose weight is impressions.
    NaN when no user is left. ``order`` as in :class:`Ranking`.
    """
    ranking = Ranking(probability, label, user, order)
    auc = ranking.auc()
    ranked = ~np.isnan(auc)
    if not ranked.any():
        return math.nan
    return float(np.average(auc[ranked], weights=ranking.group_sizes[ranked]))


class Ranking:
    r"""Candidates sorted once by (group, probability), for the AUC of each group by any weights.

    .. math:: \mathrm{AUC} = \frac{\sum_p w_p \, (N_{<p} + N_{\le p}) / 2}{\sum_p w_p \sum_n w_n}

    over positives p and negatives n, with :math:`N_{<p}` and :math:`N_{\le p}` the weight of the
    negatives below p and of those not above it: a tie counts half. One call is O(n).
    """

    def __init__(
        self,
        probability: np.ndarray,
        label: np.ndarray,
        group: np.ndarray | None = None,
        order: np.ndarray | None = None,
    ) -> None:
        """All (n,); without ``group`` all candidates are one group. ``order`` is that of
        ``np.argsort(probability)``, where it is known already.
        """
        order = np.argsort(probability) if order is None else order
        new_group = np.arange(len(order)) == 0
        if group is not None:
            group = np.asarray(group)
            order = order[_stable_order(group[order])]
            new_group = _changes(group[order])
        tie = np.cumsum(new_group | _changes(np.asarray(probability)[order]), dtype=np.int32)
        number = np.cumsum(new_group, dtype=np.int32) - 1
        positive = np.asarray(label)[order] > 0
        self.group_sizes = np.bincount(number)
        """(G,) candidates of each group, groups in ascending order."""
        self._positives, self._negatives = order[positive], order[~positive]
        self._group_of_positive, self._group_of_negative = number[positive], number[~positive]
        # of each positive: the negatives of its group that are below it, and not above it
        self._first = np.searchsorted(self._group_of_negative, self._group_of_positive)
        self._below = np.searchsorted(tie[~positive], tie[positive])
        self._not_above = np.searchsorted(tie[~positive], tie[positive], side="right")

    def auc(self, weight: np.ndarray | None = None) -> np.ndarray:
        """(G,) AUC of each group; NaN where one class has no weight.

        Args:
            weight: (n,) of each candidate, in the order given to the constructor; None is all 1
        """
        weight = np.ones(len(self._positives) + len(self._negatives)) if weight is None else weight
        positive, negative = weight[self._positives], weight[self._negatives]
        up_to = np.append(0.0, np.cumsum(negative))
        beaten = (up_to[self._below] + up_to[self._not_above]) / 2 - up_to[self._first]
        groups = len(self.group_sizes)

        def sums(group: np.ndarray, values: np.ndarray) -> np.ndarray:
            return np.bincount(group, values, minlength=groups)

        pairs = sums(self._group_of_positive, positive) * sums(self._group_of_negative, negative)
        with np.errstate(invalid="ignore"):
            return sums(self._group_of_positive, positive * beaten) / pairs


def _stable_order(group: np.ndarray) -> np.ndarray:
    """``np.argsort(group, kind="stable")`` of integers: (group, place) sorted as one number each.
    NumPy sorts numbers much faster than it finds their order.
    """
    if group.min() < -(2**31) or group.max() >= 2**31:
        group = np.unique(group, return_inverse=True)[1]
    both = (group.astype(np.int64) << 32) + np.arange(len(group))
    both.sort()
    return both & (2**32 - 1)


def _changes(values: np.ndarray) -> np.ndarray:
    """(n,) bool: whether a value differs from the one before; true for the first."""
    return np.concatenate(([True], values[1:] != values[:-1]))


def _distinct(values: np.ndarray) -> int:
    # np.unique takes three times as long, to hash them
    return int(np.count_nonzero(_changes(np.sort(values))))


def _entropy(share: float) -> float:
    """Nats of a coin."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p)


def _resamples(predictions: Predictions, by: By, bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """``bootstrap`` times (n,) float64: how often each candidate is drawn. Of R requests (or U
    users) R (or U) are drawn with replacement, each with all its candidates.
    """
    if by not in ("request", "user"):
        raise ValueError(f"by must be request or user, got {by!r}.")
    if not bootstrap:
        return
    units, unit_of = np.unique(getattr(predictions, by), return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(bootstrap):
        draws = rng.integers(0, len(units), size=len(units))
        yield np.bincount(draws, minlength=len(units)).astype(np.float64)[unit_of]


def _interval(resampled: list[float]) -> Interval:
    """Percentile interval; resamples that lost a whole class are left out."""
    values = np.asarray(resampled)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _by_request(predictions: Predictions) -> Predictions:
    order = np.argsort(predictions.request, kind="stable")
    columns = (getattr(predictions, name) for name in Predictions.__dataclass_fields__)
    return Predictions(*(np.asarray(column)[order] for column in columns))


def _check_same_candidates(a: Predictions, b: Predictions) -> None:
    """Both by request."""
    if all(np.array_equal(getattr(a, name), getattr(b, name)) for name in _CANDIDATE):
        return
    raise InputError(
        f"Two models can be compared only on the same candidates: got {len(a.label):,} and "
        f"{len(b.label):,} with different requests, users or labels. Evaluate both on one store "
        "and one split."
    )


_CANDIDATE = ("request", "user", "label")


def _check_values(probability: np.ndarray, label: np.ndarray) -> None:
    broken = int(np.count_nonzero(~np.isfinite(probability)))
    if broken:
        raise InputError(
            f"{broken:,} of {len(probability):,} probabilities are NaN or infinite: the model has "
            "diverged. Lower the learning rates, or go back to an earlier checkpoint."
        )
    if np.min(probability, initial=0) < 0 or np.max(probability, initial=1) > 1:
        raise InputError(
            f"Probabilities must lie in [0, 1], got {np.min(probability):.4g} to "
            f"{np.max(probability):.4g}. Are these logits? Apply a sigmoid first."
        )
    if not np.isin(label, (0, 1)).all():
        raise InputError(f"Labels must be 0 or 1, got {np.unique(label)[:5].tolist()} ...")


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
