"""The synthetic source: its truth, recomputed with loops, and the properties of its log."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data.prepare import prepare
from data.source import SPLITS
from data.sources.synthetic import Synthetic
from data.store import EventStore

SMALL = Synthetic(users=200, events_per_user=60, items=500, categories=20, history_needed=30)


def log(source: Synthetic) -> pl.DataFrame:
    return pl.concat(source.event_frames())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EventStore:
    folder = tmp_path_factory.mktemp("synthetic") / "store"
    prepare(SMALL, folder)
    return EventStore.open(folder)


def true_probability(items: list[tuple[int, int]], candidate: tuple[int, int]) -> float:
    """The docstring's formula for SMALL. ``items``: (item, category) of the history."""
    needed = SMALL.history_needed
    match = 0.0
    for j, (item, category) in enumerate(reversed(items[-needed:]), start=1):
        weight = 1 - (j - 1) / needed
        match += weight * (int(category == candidate[1]) + int(item == candidate[0]))
    weights = sum(1 - (j - 1) / needed for j in range(1, needed + 1))
    by_chance, by_interest = weights / 20, weights / 2 / 3
    middle = (math.log(1 + by_chance) + math.log(1 + by_interest)) / 2
    return 1 / (1 + math.exp(-(math.log(1 + match) - middle) / 0.5))


def slow_truth(store: EventStore, split: str) -> tuple[list[float], list[int]]:
    """True probability and label of every candidate of a split."""
    probabilities, labels = [], []
    for partition in store.partitions:
        events = list(zip(partition.events["item"], partition.events["category"], strict=True))
        first_row = dict(zip(partition.users["user"], partition.users["first_row"], strict=True))
        of = partition.requests(split)
        for number, (user, end) in enumerate(zip(of.user, of.end, strict=True)):
            for place in range(of.offsets[number], of.offsets[number + 1]):
                item = of.candidates[place]
                candidate = (item, store.items["category"][item])
                history = events[first_row[user] : end]
                probabilities.append(true_probability(history, candidate))
                labels.append(int(of.labels[place]))
    return probabilities, labels


def test_the_best_auc_is_that_of_the_true_probability(store) -> None:
    probabilities, labels = slow_truth(store, "test")
    probabilities = np.round(probabilities, 9)  # sums in another order: ties must stay ties
    assert store.info.best_auc == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-9)


def test_clicks_are_as_frequent_as_their_probability_says(store) -> None:
    probabilities, labels = map(np.array, slow_truth(store, "train"))
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (probabilities >= low) & (probabilities < low + 0.25)
        expected = probabilities[chosen].sum()
        deviation = np.sqrt((probabilities * (1 - probabilities))[chosen].sum())
        assert abs(labels[chosen].sum() - expected) < 4 * deviation


def test_popularity_says_little_and_the_history_much(store) -> None:
    of = [partition.requests("train") for partition in store.partitions]
    items = np.concatenate([requests.candidates for requests in of])
    labels = np.concatenate([requests.labels for requests in of])
    assert roc_auc_score(labels, store.items["frequency"][items]) < 0.65
    assert store.info.best_auc > 0.8


def test_requests_are_the_last_pages_of_each_user(store) -> None:
    for partition in store.partitions:
        users = partition.users
        last = dict(zip(users["user"], users["first_row"] + users["count"], strict=True))
        test, val, train = (partition.requests(split) for split in reversed(SPLITS))
        assert test.end.tolist() == [last[user] - 4 for user in test.user]
        assert val.end.tolist() == [last[user] - 8 for user in val.user]
        assert all(
            last[u] - 40 <= end <= last[u] - 12
            for u, end in zip(train.user, train.end, strict=True)
        )
        assert test.user.tolist() == users["user"].tolist()


def test_partitions_do_not_change_the_clicks(tmp_path: Path, store) -> None:
    info = prepare(SMALL, tmp_path / "store", partitions=3)
    assert info.best_auc == store.info.best_auc
    parts = EventStore.open(tmp_path / "store").partitions
    assert len(parts) == 3
    label_of = {
        (user, end): labels
        for partition in store.partitions
        for user, end, labels in rows_by_user(partition)
    }
    for partition in parts:
        for user, end, labels in rows_by_user(partition):
            assert label_of[user, end] == labels


def rows_by_user(partition):
    """(user, events before the request, labels) of the test requests."""
    of = partition.requests("test")
    first_row = dict(zip(partition.users["user"], partition.users["first_row"], strict=True))
    for number, (user, end) in enumerate(zip(of.user, of.end, strict=True)):
        labels = of.labels[of.offsets[number] : of.offsets[number + 1]].tolist()
        yield user, end - first_row[user], labels


def test_one_preparation_s_clicks_do_not_count_for_the_next(tmp_path: Path) -> None:
    fresh = prepare(SMALL, tmp_path / "fresh", seed=2).best_auc
    used = dataclasses.replace(SMALL)
    prepare(used, tmp_path / "first", seed=1)
    assert prepare(used, tmp_path / "second", seed=2).best_auc == fresh


def test_few_clicks_have_no_best_auc(tmp_path: Path) -> None:
    few = dataclasses.replace(SMALL, users=40)  # 160 candidates of test requests at most
    assert prepare(few, tmp_path / "store").best_auc is None


def test_noise_decides_how_good_a_model_can_be(tmp_path: Path) -> None:
    best = []
    for noise in (0.05, 0.5, 50):
        source = dataclasses.replace(SMALL, users=500, noise=noise)
        best.append(prepare(source, tmp_path / str(noise)).best_auc)
    assert best[0] > 0.99
    assert 0.75 < best[1] < 0.95
    assert abs(best[2] - 0.5) < 0.05


def test_a_user_s_events_do_not_depend_on_the_other_users() -> None:
    few = log(dataclasses.replace(SMALL, users=5))
    assert few.equals(log(SMALL).filter(pl.col("user") < 5))


def test_frames_stay_small_whatever_the_size() -> None:
    source = Synthetic(users=10**7, events_per_user=100)  # 10^9 events
    frames = source.event_frames()
    for _ in range(2):
        assert next(frames).height < 1_000_000


def test_popularity_falls_as_one_over_the_rank() -> None:
    source = Synthetic(users=1000, lengths="fixed", categories=1)  # with one, no interest moves it
    frequency = log(source)["item"].value_counts().sort("count", descending=True)["count"]
    rank = np.array([1, 10, 100, 1000])
    # log(1 + 1 / rank) / log(1 + items) of 200,000 events
    expected = 200_000 * np.log1p(1 / rank) / math.log(10_001)
    np.testing.assert_allclose(frequency.to_numpy()[rank - 1], expected, rtol=0.25)


@pytest.mark.parametrize("lengths", ["fixed", "exponential", "pareto"])
def test_lengths_have_the_mean_that_was_asked_for(lengths) -> None:
    source = Synthetic(users=5000, events_per_user=40, lengths=lengths)
    assert log(source).height / 5000 == pytest.approx(40, rel=0.1)


def test_the_csv_is_the_log(tmp_path: Path) -> None:
    rows = SMALL.write_csv(tmp_path / "log.csv")
    written = pl.read_csv(tmp_path / "log.csv")
    assert written.height == rows
    assert written.equals(log(SMALL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "users must be at least 1, got 0"),
        ({"history_needed": 0}, "history_needed must be at least 1"),
        ({"noise": 0.0}, "noise must be a positive number"),
        ({"noise": math.nan}, "noise must be a positive number"),
        ({"items": 10, "categories": 20}, "Ask for at most 10 categories"),
    ],
)
def test_impossible_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Synthetic(**options)
