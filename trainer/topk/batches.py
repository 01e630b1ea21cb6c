"""Batches of an epoch: a pure function of the purchases, the seed and the epoch.

Shapes: P places, N negatives, B windows, T events of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from modules.retrieval.config import SelfAttentionConfig
from modules.retrieval.loss import Pairs, Windows
from trainer.topk.experiment import TopKExperiment
from trainer.topk.interactions import Interactions

REDRAWS = 50
"""After which an item that the user did buy may be a negative: of someone who bought nearly all."""


class PairBatches:
    """Different purchases (a user, an item) in random order."""

    def __init__(self, log: Interactions, experiment: TopKExperiment) -> None:
        self._log, self._experiment = log, experiment
        self._users, self._items = log.bought.users, log.bought.items

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._users) / self._experiment.batch_size)

    def epoch(self, number: int) -> Iterator[Pairs]:
        """Every purchase once."""
        rng = np.random.default_rng([self._experiment.seed, number])
        for chosen in np.array_split(rng.permutation(len(self._users)), len(self)):
            users = self._users[chosen]
            negatives = draw_negatives(self._log, users, self._experiment, rng)
            yield Pairs(*map(torch.from_numpy, (users, self._items[chosen], negatives)))


class WindowBatches:
    """Windows of histories in random order; their ends shift from epoch to epoch.

    What is to be predicted at an event is one of the next ``horizon`` purchases after its basket,
    all equally likely: lines of a basket are no sequence. Where only new items are ranked, only
    the first purchase of an item counts.
    """

    def __init__(self, log: Interactions, experiment: TopKExperiment[SelfAttentionConfig]) -> None:
        self._log, self._experiment = log, experiment
        self._length = experiment.model.history_length
        counts = np.diff(log.first_row)
        self._users = np.repeat(np.arange(log.num_users), -(-counts // self._length))
        self._targets = target_rows(log, new=experiment.candidates == "new")
        self._first_target, self._last_target = target_ranges(log, self._targets)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._users) / self._experiment.batch_size)

    def epoch(self, number: int) -> Iterator[Windows]:
        """About every event once; no window after which its user bought nothing."""
        rng = np.random.default_rng([self._experiment.seed, number])
        ends = self._ends(rng)
        for chosen in np.array_split(rng.permutation(len(ends)), len(self)):
            rows, valid = window_rows(
                self._log.first_row[self._users[chosen]], ends[chosen], self._length
            )
            targets = np.where(valid, self._draw_targets(rows, rng), 0)
            teaches = (targets > 0).any(axis=1)
            if not teaches.any():  # users who bought once
                continue
            chosen, rows, valid, targets = (
                part[teaches] for part in (chosen, rows, valid, targets)
            )
            users = np.repeat(self._users[chosen, None], self._length, 1)[targets > 0]
            negatives = draw_negatives(self._log, users, self._experiment, rng)
            events = np.where(valid, self._log.item[rows], 0)
            yield Windows(*map(torch.from_numpy, (events, valid, targets, negatives)))

    def _ends(self, rng: np.random.Generator) -> np.ndarray:
        """Row after each window's last: a user's windows follow each other, from a random shift."""
        first_row, length = self._log.first_row, self._length
        number = np.arange(len(self._users)) - np.searchsorted(self._users, self._users)
        shift = rng.integers(0, length, size=self._log.num_users)[self._users]
        begin, end = first_row[self._users], first_row[self._users + 1]
        return np.maximum(end - shift - number * length, np.minimum(begin + 1, end))

    def _draw_targets(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Items, of the shape of ``rows``; 0 where nothing was bought later."""
        first = self._first_target[rows]
        many = np.minimum(self._last_target[rows] - first, self._experiment.model.horizon)
        chosen = first + (rng.random(rows.shape) * many).astype(np.int64)
        if not len(self._targets):
            return np.zeros_like(rows)
        chosen = np.minimum(chosen, len(self._targets) - 1)
        return np.where(many > 0, self._log.item[self._targets[chosen]], 0)


def histories(
    log: Interactions, length: int, users_chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latest training events of all users, in chunks: items (B, T), 0 where there are none, and
    where there are any.
    """
    for begin in range(0, log.num_users, users_chunk):
        bounds = log.first_row[begin : begin + users_chunk + 1]
        rows, valid = window_rows(bounds[:-1], bounds[1:], length)
        items = np.where(valid, log.item[rows], 0)
        yield torch.from_numpy(items).to(device), torch.from_numpy(valid).to(device)


def window_rows(first: np.ndarray, end: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) rows of events up to ``end`` (exclusive), and which are not before ``first``."""
    rows = end[:, None] - np.arange(length, 0, -1)
    valid = rows >= first[:, None]
    return np.where(valid, rows, 0), valid


def target_rows(log: Interactions, *, new: bool) -> np.ndarray:
    """Ascending rows of events that may be predicted: all, or each user's first of an item."""
    if not new:
        return np.arange(len(log.item))
    _, first = np.unique(log.user * log.num_items + log.item, return_index=True)
    return np.sort(first)


def target_ranges(log: Interactions, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) each: places in ``targets`` of the first that its user bought later than an event, and
    of the first of the next user.
    """
    user, time = log.user, log.time
    new_moment = np.ones(len(user), bool)
    new_moment[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    moment = np.cumsum(new_moment) - 1
    moments_end = np.append(np.flatnonzero(new_moment)[1:], len(user))
    first = np.searchsorted(targets, moments_end[moment])
    last = np.searchsorted(targets, log.first_row[user + 1])
    return first, np.maximum(first, last)


def draw_negatives(
    log: Interactions, users: np.ndarray, experiment: TopKExperiment, rng: np.random.Generator
) -> np.ndarray:
    """(P,) items that the P users did not buy in training, or (N,) of the whole catalogue."""
    if experiment.loss == "sampled_softmax":
        return rng.integers(1, log.num_items, size=experiment.negatives)
    negatives = rng.integers(1, log.num_items, size=len(users))
    left = np.arange(len(users))
    for _ in range(REDRAWS):
        left = left[log.bought.contains(users[left], negatives[left])]
        if not len(left):
            break
        negatives[left] = rng.integers(1, log.num_items, size=len(left))
    return negatives
