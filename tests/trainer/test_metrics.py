import dataclasses
import json
import math
import time
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from data.errors import InputError
from trainer.metrics import (
    Predictions,
    Ranking,
    binomial_interval,
    calibration_curve,
    evaluate,
    expected_calibration_error,
    grouped_auc,
    paired_difference,
)


def draw(requests: int = 300, seed: int = 0, noise: float = 1.0) -> Predictions:
    """Requests of 1 to 6 candidates; coarse probabilities, so that many are tied."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(requests), rng.integers(1, 7, size=requests))
    logit = rng.normal(size=len(request))
    label = (rng.random(len(request)) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    guess = logit + np.random.default_rng(seed + 1).normal(scale=noise, size=len(request))
    probability = np.round(1 / (1 + np.exp(-guess)), 2).clip(0.01, 0.99)
    return Predictions(probability, label, request % 40, request)


def of(probability: list[float], label: list[int], user: list[int] | None = None) -> Predictions:
    """Each candidate a request of its own."""
    user = user or [0] * len(label)
    return Predictions(*map(np.asarray, (probability, label, user, range(len(label)))))


def test_auc_and_log_loss_agree_with_scikit_learn() -> None:
    predictions = draw()
    metrics = evaluate(predictions, bootstrap=0)
    assert metrics.auc == pytest.approx(roc_auc_score(predictions.label, predictions.probability))
    assert metrics.logloss == pytest.approx(
        sklearn_log_loss(predictions.label, predictions.probability)
    )


def test_a_tie_between_a_positive_and_a_negative_counts_half() -> None:
    # pairs (positive, negative): .5 > .2 counts 1, .5 = .5 counts a half
    assert evaluate(of([0.5, 0.5, 0.2], [1, 0, 0])).auc == 0.75


def test_the_expected_calibration_error_by_hand() -> None:
    # bins [0, .1): .05 of 2 rows, 1 click; [.3, .4): .3 and .34, none; [.9, 1]: .9 and 1, both
    probability = np.array([0.05, 0.05, 0.3, 0.34, 0.9, 1.0])
    label = np.array([1, 0, 0, 0, 1, 1])
    expected = (2 * (0.5 - 0.05) + 2 * 0.32 + 2 * (1 - 0.95)) / 6
    assert expected_calibration_error(probability, label) == pytest.approx(expected)
    # a single bin compares the means
    together = abs(probability.mean() - 0.5)
    assert expected_calibration_error(probability, label, bins=1) == pytest.approx(together)
    assert math.isnan(expected_calibration_error(np.array([]), np.array([])))
    with pytest.raises(ValueError, match="bins must be positive"):
        expected_calibration_error(probability, label, bins=0)


def test_normalized_entropy_and_calibration_by_hand() -> None:
    metrics = evaluate(of([0.5, 0.25, 0.25, 0.25], [1, 0, 0, 0]))
    logloss = -(math.log(0.5) + 3 * math.log(0.75)) / 4
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert metrics.logloss == pytest.approx(logloss)
    assert metrics.normalized_entropy == pytest.approx(logloss / base)
    assert metrics.calibration == pytest.approx(1.25 / 1)
    assert (metrics.samples, metrics.requests, metrics.users, metrics.positives) == (4, 4, 1, 1)


def test_always_predicting_the_base_rate_has_normalized_entropy_one() -> None:
    assert evaluate(of([0.25] * 4, [1, 0, 0, 0])).normalized_entropy == pytest.approx(1.0)


def test_a_certain_mistake_costs_a_finite_log_loss_also_in_float32() -> None:
    certain = of(np.float32([1.0, 0.0]), [0, 1])
    assert evaluate(certain).logloss == pytest.approx(-math.log(1e-7))


def test_gauc_weights_users_by_candidates_and_skips_users_of_one_class() -> None:
    # user 7: 1 of 2 pairs right, 3 candidates; user 3: right, 2 candidates; user 5: no click
    probability = [0.5, 0.9, 0.1, 0.8, 0.2, 0.7, 0.6]
    label = [1, 0, 0, 1, 0, 0, 0]
    user = [7, 7, 7, 3, 3, 5, 5]
    assert evaluate(of(probability, label, user)).gauc == pytest.approx((3 * 0.5 + 2 * 1.0) / 5)


def test_gauc_is_scikit_learns_auc_of_each_user_averaged() -> None:
    predictions = draw(seed=4)
    aucs, weights = [], []
    for user in np.unique(predictions.user):
        mine = predictions.user == user
        if 0 < predictions.label[mine].sum() < mine.sum():
            aucs.append(roc_auc_score(predictions.label[mine], predictions.probability[mine]))
            weights.append(mine.sum())
    assert grouped_auc(
        predictions.probability, predictions.label, predictions.user
    ) == pytest.approx(np.average(aucs, weights=weights))


@pytest.mark.parametrize("widest", [5, 2**31 - 1, 2**31, 2**62])
def test_gauc_does_not_depend_on_how_large_the_ids_of_users_are(widest: int) -> None:
    rng = np.random.default_rng(3)
    user, label = rng.integers(-3, 6, 400), rng.integers(0, 2, 400)
    probability = rng.random(400).round(1)  # ties
    named = np.where(user == 5, widest, user)
    order = np.argsort(probability, kind="stable")
    expected = grouped_auc(probability, label, user)
    assert grouped_auc(probability, label, named) == expected
    assert grouped_auc(probability, label, named, order) == expected
    auc_of = [roc_auc_score(label[user == u], probability[user == u]) for u in range(-3, 6)]
    sizes = [np.count_nonzero(user == u) for u in range(-3, 6)]
    assert expected == pytest.approx(np.average(auc_of, weights=sizes), abs=1e-12)


def test_weighted_auc_is_the_auc_of_the_repeated_candidates() -> None:
    predictions = draw(requests=60)
    times = np.random.default_rng(2).integers(0, 4, size=len(predictions.label))
    repeated = np.repeat(predictions.label, times), np.repeat(predictions.probability, times)
    weighted = Ranking(predictions.probability, predictions.label).auc(times)
    assert weighted[0] == pytest.approx(roc_auc_score(*repeated))


def resample(predictions: Predictions, requests: np.ndarray) -> np.ndarray:
    """Rows of the candidates of ``requests``, repeated as they are."""
    return np.concatenate([np.flatnonzero(predictions.request == r) for r in requests])


def test_interval_is_that_of_drawing_requests_and_computing_anew() -> None:
    predictions = draw(requests=50)
    rng = np.random.default_rng(3)
    aucs = []
    for _ in range(40):
        rows = resample(predictions, rng.integers(0, 50, size=50))
        aucs.append(roc_auc_score(predictions.label[rows], predictions.probability[rows]))
    interval = evaluate(predictions, bootstrap=40, seed=3).auc_interval
    assert interval == pytest.approx(np.percentile(aucs, (2.5, 97.5)))


def test_paired_interval_is_that_of_drawing_requests_and_computing_both_anew() -> None:
    a, b = draw(requests=50, noise=0.3), draw(requests=50, noise=2.0)
    rng = np.random.default_rng(3)
    differences = []
    for _ in range(40):
        rows = resample(a, rng.integers(0, 50, size=50))
        auc_a, auc_b = (roc_auc_score(p.label[rows], p.probability[rows]) for p in (a, b))
        differences.append(auc_a - auc_b)
    difference = paired_difference(a, b, bootstrap=40, seed=3)
    assert difference.interval == pytest.approx(np.percentile(differences, (2.5, 97.5)))
    assert difference.auc == pytest.approx(
        roc_auc_score(a.label, a.probability) - roc_auc_score(b.label, b.probability)
    )


def resample_users(predictions: Predictions, users: np.ndarray) -> np.ndarray:
    """Rows of the candidates of ``users``, repeated as they are."""
    return np.concatenate([np.flatnonzero(predictions.user == user) for user in users])


def test_interval_over_users_keeps_the_requests_of_a_user_together() -> None:
    predictions = draw(requests=120)  # of 40 users
    rng = np.random.default_rng(3)
    aucs = []
    for _ in range(40):
        rows = resample_users(predictions, rng.integers(0, 40, size=40))
        aucs.append(roc_auc_score(predictions.label[rows], predictions.probability[rows]))
    interval = evaluate(predictions, bootstrap=40, seed=3, by="user").auc_interval
    assert interval == pytest.approx(np.percentile(aucs, (2.5, 97.5)))


def slow_auc(label: np.ndarray, probability: np.ndarray) -> float:
    """Share of the pairs (positive, negative) in the right order."""
    right = [
        (p > n) + (p == n) / 2 for p in probability[label == 1] for n in probability[label == 0]
    ]
    return float(np.mean(right))


def test_differences_of_seeds_are_averaged_within_each_resample_of_users() -> None:
    ours = [draw(requests=60, noise=noise) for noise in (0.3, 0.5, 0.7)]
    theirs = [draw(requests=60, noise=noise) for noise in (1.5, 2.0, 2.5)]
    rng = np.random.default_rng(5)
    expected = []
    for _ in range(10):
        rows = resample_users(ours[0], rng.integers(0, 40, size=40))
        differences = [
            slow_auc(a.label[rows], a.probability[rows])
            - slow_auc(b.label[rows], b.probability[rows])
            for a, b in zip(ours, theirs, strict=True)
        ]
        expected.append(np.mean(differences))
    difference = paired_difference(ours, theirs, bootstrap=10, seed=5, by="user")
    assert difference.interval == pytest.approx(np.percentile(expected, (2.5, 97.5)))
    singly = [paired_difference(*pair, bootstrap=0).auc for pair in zip(ours, theirs, strict=True)]
    assert difference.auc == pytest.approx(np.mean(singly))


def test_one_seed_in_a_list_is_that_seed_alone() -> None:
    a, b = draw(noise=0.3), draw(noise=2.0)
    assert paired_difference([a], [b], bootstrap=20) == paired_difference(a, b, bootstrap=20)


def test_users_that_differ_in_luck_widen_the_interval_over_users() -> None:
    # every user has 100 requests of one candidate each; half of the users are ranked backwards
    label = np.tile([0, 1], 2000)
    user = np.repeat(np.arange(40), 100)
    probability = np.where(user % 2 == 0, label, 1 - label) * 0.8 + 0.1
    predictions = Predictions(probability, label, user, np.arange(4000))
    widths = {}
    for by in ("request", "user"):
        low, high = evaluate(predictions, by=by).auc_interval
        widths[by] = high - low
    # of 4000 requests, 50 % right, and of 40 users, 50 % right
    assert widths["user"] == pytest.approx(10 * widths["request"], rel=0.25)


def test_unequally_many_seeds_cannot_be_paired() -> None:
    a = draw()
    with pytest.raises(InputError, match="2 trainings of one and 1 of the other"):
        paired_difference([a, a], [a])
    with pytest.raises(InputError, match="at least one"):
        paired_difference([], [])


def test_predictions_are_resampled_by_request_or_user_only() -> None:
    with pytest.raises(ValueError, match="request or user, got 'label'"):
        evaluate(draw(), by="label")


def test_paired_interval_is_narrower_when_luck_is_shared() -> None:
    a, b = draw(noise=0.5), draw(noise=0.6)
    low, high = paired_difference(a, b, bootstrap=200).interval
    single = evaluate(a).auc_interval
    assert high - low < 0.8 * (single[1] - single[0])


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    population = draw(requests=20_000, seed=100)
    truth = evaluate(population, bootstrap=0).auc
    covered = 0
    for seed in range(60):
        low, high = evaluate(draw(requests=150, seed=seed), bootstrap=200, seed=seed).auc_interval
        covered += low <= truth <= high
    assert 0.85 <= covered / 60 <= 1.0


def test_the_order_of_the_candidates_does_not_matter() -> None:
    predictions = draw()
    order = np.random.default_rng(1).permutation(len(predictions.label))
    shuffled = Predictions(
        predictions.probability[order],
        predictions.label[order],
        predictions.user[order],
        predictions.request[order],
    )
    for name, value in asdict(evaluate(predictions)).items():
        assert getattr(evaluate(shuffled), name) == pytest.approx(value, rel=1e-12), name


def test_runs_gathered_in_another_order_of_requests_can_be_paired() -> None:
    a = draw()
    order = np.argsort(-a.request, kind="stable")
    b = Predictions(a.probability[order], a.label[order], a.user[order], a.request[order])
    assert paired_difference(a, b, bootstrap=20) == (0.0, (0.0, 0.0))


def test_different_candidates_cannot_be_paired() -> None:
    a = draw()
    with pytest.raises(InputError, match="same candidates"):
        paired_difference(a, draw(requests=200))
    with pytest.raises(InputError, match="same candidates"):
        paired_difference([a, a], [a, dataclasses.replace(a, user=a.user + 1)])


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_has_no_auc_and_json_holds_null(only: int) -> None:
    metrics = evaluate(of([0.2, 0.4], [only, only]))
    written = json.loads(json.dumps(metrics.to_json(), allow_nan=False))
    assert written["auc"] is None and written["gauc"] is None
    assert written["auc_interval"] == [None, None]
    assert written["normalized_entropy"] is None
    assert written["calibration"] == (pytest.approx(0.3) if only else None)
    assert written["logloss"] > 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_probabilities_that_are_no_numbers_are_refused(broken: float) -> None:
    with pytest.raises(InputError, match="1 of 2 probabilities are NaN or infinite"):
        of([0.5, broken], [0, 1])


def test_logits_and_other_labels_are_refused() -> None:
    with pytest.raises(InputError, match="Apply a sigmoid"):
        of([0.5, 3.0], [0, 1])
    with pytest.raises(InputError, match="Labels must be 0 or 1"):
        of([0.5, 0.1], [0, 2])


def test_no_candidates_and_unequal_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="no candidates"):
        of([], [])
    with pytest.raises(ValueError, match="one shape"):
        Predictions(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))


def test_calibration_bins_hold_equally_many_candidates() -> None:
    probability = np.array([0.9, 0.1, 0.2, 0.8, 0.3])
    label = np.array([1, 0, 1, 1, 0])
    curve = calibration_curve(probability, label, bins=2)
    np.testing.assert_allclose(curve.predicted, [0.15, (0.3 + 0.8 + 0.9) / 3])
    np.testing.assert_allclose(curve.observed, [1 / 2, 2 / 3])
    np.testing.assert_array_equal(curve.count, [2, 3])


def test_fewer_candidates_than_calibration_bins_give_one_bin_each() -> None:
    curve = calibration_curve(np.array([0.2, 0.1]), np.array([1, 0]), bins=20)
    np.testing.assert_allclose(curve.predicted, [0.1, 0.2])
    np.testing.assert_array_equal(curve.observed, [0, 1])


def test_binomial_interval_is_that_of_scipy() -> None:
    expected = [
        binomtest(hits, n).proportion_ci(method="wilson") for hits, n in ((0, 5), (3, 9), (50, 90))
    ]
    interval = binomial_interval(np.array([0, 3 / 9, 50 / 90]), np.array([5, 9, 90]))
    np.testing.assert_allclose(interval.T, [(ci.low, ci.high) for ci in expected], atol=1e-4)


def test_two_hundred_resamples_of_a_real_test_split_take_seconds() -> None:
    predictions = draw(requests=26_000)  # about 90,000 candidates
    start = time.perf_counter()
    evaluate(predictions, bootstrap=200)
    assert time.perf_counter() - start < 10  # about 0.5 on an idle core
