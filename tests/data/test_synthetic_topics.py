"""The synthetic source's hidden topics and valences: its truth, recomputed with loops."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.store import EventStore

SAME = Synthetic(
    similarity="same", users=200, events_per_user=60, items=120, categories=6, history_needed=30
)
DIFFERENT = dataclasses.replace(SAME, similarity="different", noise=0.2)
SOURCES = {"same": SAME, "different": DIFFERENT}


def topic(item: int) -> int:
    return item % 6


def valence(item: int) -> int:
    return 1 if item // 6 % 2 else -1


def true_probability(similarity: str, history: list[int], candidate: int) -> float:
    """The docstring's formula, for SOURCES."""
    weights = [20 if topic(item) == topic(candidate) else 1 for item in history[-30:]]
    hidden = topic if similarity == "same" else valence
    signs = [1 if hidden(item) == hidden(candidate) else -1 for item in history[-30:]]
    mean = sum(w * c for w, c in zip(weights, signs, strict=True)) / sum(weights)
    middle = 0.0
    if similarity == "same":  # 2.5 of 30 events have a topic, with those of an interest 5 more
        means = [(20 * n - (30 - n)) / (20 * n + 30 - n) for n in (2.5, 7.5)]
        middle = sum(means) / 2
    return 1 / (1 + math.exp(-(mean - middle) / SOURCES[similarity].noise))


@pytest.mark.parametrize("similarity", SOURCES)
def test_the_best_auc_is_that_of_the_true_probability(tmp_path: Path, similarity: str) -> None:
    prepare(SOURCES[similarity], tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    original = store.originals("item").to_pylist()
    probabilities, labels = [], []
    for partition in store.partitions:
        items = [original[item] for item in partition.events["item"]]
        first_row = dict(zip(partition.users["user"], partition.users["first_row"], strict=True))
        of = partition.requests("test")
        for number, (user, end) in enumerate(zip(of.user, of.end, strict=True)):
            mine = slice(of.offsets[number], of.offsets[number + 1])
            history = items[first_row[user] : end]
            for candidate, label in zip(of.candidates[mine], of.labels[mine], strict=True):
                probabilities.append(true_probability(similarity, history, original[candidate]))
                labels.append(int(label))
    probabilities = np.round(probabilities, 9)  # ties must stay ties
    assert store.info.best_auc == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-9)
    deviation = math.sqrt((probabilities * (1 - probabilities)).sum())
    assert abs(sum(labels) - probabilities.sum()) < 4 * deviation


def test_only_the_clicks_differ() -> None:
    assert pl.concat(SAME.event_frames()).equals(pl.concat(DIFFERENT.event_frames()))


@pytest.mark.parametrize("similarity", SOURCES)
def test_about_half_of_the_candidates_are_clicked(tmp_path: Path, similarity: str) -> None:
    source = dataclasses.replace(SOURCES[similarity], users=1000)
    prepare(source, tmp_path / "store")
    (partition,) = EventStore.open(tmp_path / "store").partitions
    assert 0.4 < partition.requests("train").labels.mean() < 0.7


@pytest.mark.parametrize("similarity", SOURCES)
def test_the_log_shows_neither_topic_nor_valence(tmp_path: Path, similarity: str) -> None:
    source = SOURCES[similarity]
    info = prepare(source, tmp_path / "store")
    assert [field.name for field in info.fields] == ["item", "category"]
    assert info.categories == 1
    source.write_csv(tmp_path / "log.csv")
    assert pl.read_csv(tmp_path / "log.csv").columns == ["user", "item", "time"]


def test_ids_carry_the_topic_and_valence_that_decide() -> None:
    frame = pl.concat(DIFFERENT.event_frames())
    assert frame["topic"].to_list() == [topic(item) for item in frame["item"]]
    assert (2 * frame["valence"] - 1).to_list() == [valence(item) for item in frame["item"]]
    assert frame["item"].n_unique() == 120


def test_half_of_a_user_s_favourite_topics_are_liked_and_most_events_agree() -> None:
    frame = pl.concat(dataclasses.replace(DIFFERENT, users=2000).event_frames())
    by_topic = frame.group_by("user", "topic").agg(pl.col("valence").mean(), n=pl.len())
    often = by_topic.filter(pl.col("n") >= 15)
    liked = often.filter(pl.col("valence") > 0.5)
    assert len(liked) / len(often) == pytest.approx(0.5, abs=0.05)
    # half follow what the user feels, and of the others half agree by chance
    assert liked["valence"].mean() == pytest.approx(0.75, abs=0.02)


def test_topics_and_valences_need_equally_many_items() -> None:
    with pytest.raises(ValueError, match=r"Ask for a multiple of 12\."):
        dataclasses.replace(SAME, items=125)
