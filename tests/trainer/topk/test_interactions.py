"""What a top-K run may learn from, and what it has to find."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.store import EventStore
from tests.trainer.topk.logs import BY_ID, OTHER_FUTURE, TEST, TRAINING, VALIDATION, write_store
from trainer.topk.interactions import Bought, Interactions

ANN, BOB, CID, EVE = 1, 2, 3, 4


@pytest.fixture(scope="module")
def log(small: Path) -> Interactions:
    return Interactions.of(EventStore.open(small))


def sets(bought: Bought) -> dict[int, set[str]]:
    """Items by user."""
    return {
        user: {BY_ID[item] for item in bought.items[begin:end]}
        for user, (begin, end) in enumerate(
            zip(bought.offsets[:-1], bought.offsets[1:], strict=True)
        )
        if end > begin
    }


def test_training_ends_before_validation_begins(log: Interactions) -> None:
    assert log.time.max() == max(time for *_, time in TRAINING) < VALIDATION < TEST
    # the six of zoe, and no event of the future
    assert len(log.item) == 6 + len(TRAINING)
    assert sets(log.bought)[ANN] == {*"abc"}
    assert EVE not in sets(log.bought)


def test_another_future_leaves_all_of_training_as_it_was(log: Interactions, tmp_path: Path) -> None:
    other = Interactions.of(EventStore.open(write_store(tmp_path, OTHER_FUTURE)))
    for name in ("user", "item", "time", "frequency", "first_row"):
        np.testing.assert_array_equal(getattr(log, name), getattr(other, name))
    np.testing.assert_array_equal(log.bought.items, other.bought.items)
    assert sets(log.truth["test"]) != sets(other.truth["test"])


def test_events_of_a_user_are_in_order_of_time(log: Interactions) -> None:
    begin, end = log.first_row[ANN], log.first_row[ANN + 1]
    assert [BY_ID[item] for item in log.item[begin:end]] == ["a", "b", "c", "a"]
    assert log.time[begin:end].tolist() == [1, 1, 2, 3]


def test_truth_is_what_was_bought_in_the_period(log: Interactions) -> None:
    assert sets(log.truth["val"]) == {ANN: {*"ad"}, BOB: {"b"}, CID: {"c"}, EVE: {"a"}}
    assert sets(log.truth["test"]) == {ANN: {*"be"}, BOB: {"f"}, CID: {"c"}, EVE: {"b"}}


def test_who_bought_nothing_in_training_is_left_out(log: Interactions) -> None:
    assert sets(log.wanted("test", "all")) == {ANN: {*"be"}, BOB: {"f"}, CID: {"c"}}


def test_new_items_are_those_not_bought_in_training(log: Interactions) -> None:
    # cid bought nothing new
    assert sets(log.wanted("test", "new")) == {ANN: {"e"}, BOB: {"f"}}
    assert sets(log.wanted("val", "new")) == {ANN: {"d"}, BOB: {"b"}}


def test_contains_answers_for_each_pair() -> None:
    bought = Bought.of(np.array([0, 0, 2]), np.array([3, 1, 0]), 3, 4)
    users, items = np.meshgrid(np.arange(3), np.arange(4), indexing="ij")
    found = bought.contains(users, items)
    assert found.tolist() == [
        [False, True, False, True], [False] * 4, [True, False, False, False]
    ]  # fmt: skip
    assert not Bought.of(np.zeros(0, int), np.zeros(0, int), 3, 4).contains(users, items).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flat": True}, "rows without users"),
        ({"order": "file"}, "prepared with --order file"),
        ({"options": {"label": "clicked"}}, "prepared with a label"),
    ],
)
def test_stores_that_cannot_be_ranked_on_are_refused(
    small: Path, changes: dict, message: str
) -> None:
    store = EventStore.open(small)
    store.info = dataclasses.replace(store.info, **changes)
    with pytest.raises(InputError, match=message):
        Interactions.of(store)


def test_splits_that_overlap_in_time_are_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EventStore.open(small)
    part = type(store.partitions[0])
    genuine = part.requests
    swap = {"train": "test", "val": "val", "test": "train"}
    monkeypatch.setattr(part, "requests", lambda self, split: genuine(self, swap[split]))
    with pytest.raises(InputError, match="overlap in time"):
        Interactions.of(store)


def test_a_store_without_a_split_says_so(tmp_path: Path) -> None:
    future = [("ann", "a", VALIDATION), ("bob", "b", VALIDATION)]
    store = EventStore.open(write_store(tmp_path, future))
    with pytest.raises(InputError, match="no test requests"):
        Interactions.of(store)
