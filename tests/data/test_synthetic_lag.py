"""The synthetic source's clicks that follow one page of the past: its truth, in loops."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.store import EventStore

LAGGED = Synthetic(
    lag=30, users=300, events_per_user=120, lengths="fixed", items=200, categories=50, candidates=5,
    train_requests=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("lagged") / "store"
    prepare(LAGGED, folder)
    return EventStore.open(folder)


def agreements(store: EventStore, lag: int) -> tuple[list[bool], list[int]]:
    """Of every test candidate: has the page that began ``lag`` events before its category?"""
    (partition,) = store.partitions
    category, found, labels = partition.events["category"], [], []
    of = partition.requests("test")
    for number, end in enumerate(of.end):
        page = category[end - lag : end - lag + 5].tolist()
        for place in range(of.offsets[number], of.offsets[number + 1]):
            found.append(store.items["category"][of.candidates[place]] in page)
            labels.append(int(of.labels[place]))
    return found, labels


def test_the_page_at_the_lag_decides(store: EventStore) -> None:
    found, labels = map(np.array, agreements(store, 30))
    assert store.info.best_auc == pytest.approx(roc_auc_score(labels, found), abs=1e-9)
    for agrees, sign in ((True, 1), (False, -1)):
        expected = 1 / (1 + math.exp(-sign / 0.5))
        deviation = math.sqrt(expected * (1 - expected) / (found == agrees).sum())
        assert abs(labels[found == agrees].mean() - expected) < 4 * deviation


@pytest.mark.parametrize("lag", [5, 25, 35, 55])
def test_other_pages_say_nothing(store: EventStore, lag: int) -> None:
    found, labels = map(np.array, agreements(store, lag))
    assert found.mean() == pytest.approx(1 - (1 - 1 / 50) ** 5, abs=0.03)
    assert abs(roc_auc_score(labels, found) - 0.5) < 0.03


def test_pages_whole_lags_back_agree_half_as_often_each_time(store: EventStore) -> None:
    by_chance = 1 - (1 - 1 / 50) ** 5
    for pages, share in ((1, 1 / 2), (2, 1 / 4)):
        found, _ = agreements(store, 30 * pages)
        assert np.mean(found) == pytest.approx(share + (1 - share) * by_chance, abs=0.04)


def test_categories_and_items_are_equally_popular() -> None:
    log = pl.concat(dataclasses.replace(LAGGED, users=2000).event_frames())
    assert log["category"].to_list() == [item % 50 for item in log["item"]]
    share = log["item"].value_counts()["count"] / len(log) * 200
    assert share.len() == 200
    assert 0.8 < share.min() < share.max() < 1.2


def test_without_a_lag_the_log_is_what_it_was_before_there_was_one() -> None:
    log = pl.concat(Synthetic(users=2, events_per_user=8, lengths="fixed").event_frames())
    before = [95, 1, 95, 3571, 71, 2022, 71, 22, 958, 1061, 63, 0, 6255, 463, 63, 9]
    assert log["item"].to_list() == before


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"lag": -5}, "lag must be at least 0"),
        ({"lag": 31}, "Give a multiple of 5"),
        ({"items": 201}, "Ask for a multiple of 50"),
        ({"events_per_user": 35}, "ask for at least 40"),
        ({"similarity": "same"}, "leave one of them out"),
    ],
)
def test_impossible_lags_are_refused(changes: dict, way_out: str) -> None:
    with pytest.raises(ValueError, match=way_out):
        dataclasses.replace(LAGGED, **changes)
