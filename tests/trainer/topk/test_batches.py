"""What a model is shown in an epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from data.store import EventStore
from modules.retrieval.config import SelfAttentionConfig
from modules.retrieval.loss import Windows
from tests.trainer.topk.logs import BY_ID
from trainer.topk.batches import PairBatches, WindowBatches, histories, target_rows
from trainer.topk.experiment import TopKExperiment, mf, self_attention
from trainer.topk.interactions import Interactions

ZOE, ANN, BOB = 0, 1, 2


@pytest.fixture(scope="module")
def log(small: Path) -> Interactions:
    return Interactions.of(EventStore.open(small))


def long_log(users: int = 30, events: int = 40, items: int = 500) -> Interactions:
    """Baskets of 4 items with one time."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users), events)
    time = np.tile(np.arange(events) // 4, users)
    item = rng.integers(1, items, size=len(user))
    return Interactions(users, items, user, item, time, {})


def windowed(**changes: object) -> TopKExperiment:
    model = SelfAttentionConfig(width=4, hidden=4, history_length=16, horizon=6)
    return dataclasses.replace(self_attention(), model=model, batch_size=7, **changes)


def test_an_epoch_shows_every_purchase_once(log: Interactions) -> None:
    batches = PairBatches(log, dataclasses.replace(mf(), batch_size=4))
    shown = list(batches.epoch(1))
    assert len(shown) == len(batches)
    pairs = [
        pair for batch in shown for pair in zip(batch.users.tolist(), batch.positives.tolist(),
                                                strict=True)
    ]  # fmt: skip
    expected = zip(log.bought.users.tolist(), log.bought.items.tolist(), strict=True)
    assert sorted(pairs) == sorted(expected)


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    log = long_log()
    batches = PairBatches(log, mf())
    first, again, second = (next(batches.epoch(number)) for number in (1, 1, 2))
    assert first.users.equal(again.users) and first.negatives.equal(again.negatives)
    assert not first.users.equal(second.users)


def test_negatives_of_bpr_were_not_bought() -> None:
    log = long_log(items=60)
    for batch in PairBatches(log, dataclasses.replace(mf(), batch_size=100)).epoch(1):
        assert not log.bought.contains(batch.users.numpy(), batch.negatives.numpy()).any()
        assert batch.negatives.min() >= 1 and batch.negatives.max() < 60


def test_who_bought_everything_does_not_hold_up_an_epoch(log: Interactions) -> None:
    assert len(log.bought.items[log.bought.users == ZOE]) == log.num_items - 1
    (batch,) = PairBatches(log, mf()).epoch(1)
    assert len(batch.negatives) == len(batch.users)


def test_negatives_of_the_softmax_are_of_the_batch() -> None:
    experiment = dataclasses.replace(mf(), loss="sampled_softmax", negatives=33)
    assert next(PairBatches(long_log(), experiment).epoch(1)).negatives.shape == (33,)


@pytest.mark.parametrize("candidates", ["all", "new"])
def test_targets_come_after_the_basket_within_the_horizon(candidates: str) -> None:
    log = long_log()
    experiment = windowed(candidates=candidates)
    eligible = set(target_rows(log, new=candidates == "new").tolist())
    seen = 0
    for batch in WindowBatches(log, experiment).epoch(1):
        for rows, targets in zip(rows_of(log, batch), batch.targets.tolist(), strict=True):
            for row, target in zip(rows, targets, strict=True):
                if row is None:
                    assert target == 0
                    continue
                later = [
                    other for other in range(row + 1, log.first_row[log.user[row] + 1])
                    if log.time[other] > log.time[row] and other in eligible
                ]  # fmt: skip
                allowed = {int(log.item[other]) for other in later[:6]}
                assert target in allowed if allowed else target == 0
                seen += target > 0
    assert seen > 500


def rows_of(log: Interactions, batch: Windows) -> list[list[int | None]]:
    """Rows of the log behind the windows, found by their items."""
    whole = log.item.tolist()
    found = []
    for events, valid in zip(batch.events.tolist(), batch.valid.tolist(), strict=True):
        items = [item for item, there in zip(events, valid, strict=True) if there]
        (begin,) = [
            at for at in range(len(whole)) if whole[at : at + len(items)] == items
            and log.user[at] == log.user[at + len(items) - 1]
            and (len(items) == 16 or at == log.first_row[log.user[at]])
        ]  # fmt: skip
        none = [None] * (len(events) - len(items))
        found.append([*none, *range(begin, begin + len(items))])
    return found


def test_windows_of_an_epoch_hold_nearly_all_events() -> None:
    log = long_log()
    held = sum(int(batch.valid.sum()) for batch in WindowBatches(log, windowed()).epoch(1))
    # a user's last events, half a window on average, are in no window of an epoch
    assert 0.6 < held / len(log.item) <= 1


def test_targets_of_new_items_are_first_purchases(log: Interactions) -> None:
    ann = [*range(log.first_row[ANN], log.first_row[ANN + 1])]
    # a, b, c, and a again
    assert set(ann) & set(target_rows(log, new=True).tolist()) == set(ann[:3])
    assert set(ann) <= set(target_rows(log, new=False).tolist())


def test_histories_end_with_the_latest_training_event(log: Interactions) -> None:
    chunks = [*histories(log, 3, 2, torch.device("cpu"))]
    assert [len(items) for items, _ in chunks] == [2, 2, 1]
    items, valid = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    assert [BY_ID[item] for item in items[ANN].tolist()] == ["b", "c", "a"]
    assert [BY_ID[item] for item in items[BOB].tolist()] == ["?", "a", "d"]
    assert valid[BOB].tolist() == [False, True, True]
    assert not valid[4].any()
