"""Seeded negatives by popularity, drawn by hashing instead of by a generator with a state.

Shapes: N slots, each to be filled with one item; P excluded (group, item) pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from data.errors import InputError
from data.source import Partition, Requests

MAX_ATTEMPTS = 50
"""Of a slot; one that is still open (its group excludes nearly all popularity) is then drawn from
what is left."""


Refusal = Callable[[np.ndarray, np.ndarray], np.ndarray]


def draw_negatives(
    popularity: np.ndarray,
    *,
    seed: int,
    user: np.ndarray,
    slot: np.ndarray,
    group: np.ndarray,
    excluded_group: np.ndarray,
    excluded_item: np.ndarray,
    original: Callable[[int], object],
    refused: Refusal | None = None,
) -> np.ndarray:
    """(N,) int32 item ids, item i with probability popularity[i] / sum over the allowed items.

    A draw is a hash of (seed, user, slot, attempt): it does not depend on the partitioning, the
    order of the slots or what else is drawn.

    Args:
        popularity: (num_embeddings,) int64 counts by item id, 0 for id 0.
        user: (N,) int64 dense user id.
        slot: (N,) int64 number of the slot, different for every slot of a user.
        group: (N,) int64 from 0: which excluded items apply (the user, the basket ...).
        excluded_group: (P,) int64 group of each excluded pair.
        excluded_item: (P,) item id of each excluded pair.
        original: a user's id in the log, for messages.
        refused: (slots, items) -> boolean, for pairs too many to list; alike within a group.

    Raises:
        InputError: a group excludes every item that has popularity.
    """
    if len(user) == 0:
        return np.empty(0, np.int32)
    cumulative = np.cumsum(popularity)
    total = int(cumulative[-1])
    if total == 0:
        raise InputError(
            "No event counts for popularity, so negatives cannot be drawn; "
            "move the split times so that the training split has events."
        )
    excluded = np.sort(excluded_group * len(popularity) + excluded_item)
    drawn = np.empty(len(user), np.int32)
    open_slots = np.arange(len(user))
    for attempt in range(MAX_ATTEMPTS):
        uniform = hash64(seed, user[open_slots], slot[open_slots], attempt)
        # 2**64 is far above any total: the bias of the remainder is below 1e-8
        item = np.searchsorted(cumulative, uniform % np.uint64(total), side="right")
        drawn[open_slots] = item
        again = contains(excluded, group[open_slots] * len(popularity) + item)
        if refused:
            again |= refused(open_slots, item)
        open_slots = open_slots[again]
        if len(open_slots) == 0:
            return drawn
    for one in np.unique(group[open_slots]):
        slots = open_slots[group[open_slots] == one]
        left = popularity.copy()
        left[excluded_item[excluded_group == one]] = 0
        if refused:
            left[refused(np.full(len(left), slots[0]), np.arange(len(left)))] = 0
        cumulative = np.cumsum(left)
        if cumulative[-1] == 0:
            raise InputError(
                f"No negative is left for user {original(int(user[slots[0]]))}: their own items "
                f"are all of the {np.count_nonzero(popularity)} items with popularity. Use a log "
                "with more items, or leave this user out."
            )
        uniform = hash64(seed, user[slots], slot[slots], MAX_ATTEMPTS)
        place = uniform % np.uint64(cumulative[-1])
        drawn[slots] = np.searchsorted(cumulative, place, side="right")
    return drawn


def add_negatives(
    positives: Requests,
    partition: Partition,
    popularity: np.ndarray,
    *,
    negatives: int,
    seed: int,
    slot: np.ndarray,
    group: np.ndarray,
    excluded_group: np.ndarray,
    excluded_item: np.ndarray,
    refused: Refusal | None = None,
) -> Requests:
    """Each positive followed by its negatives.

    Args:
        positives: requests of the partition whose C candidates are all positive.
        negatives: to draw for each positive.
        slot: (C,) number of each positive, different for every positive of a user.
        group: (C,) as in ``draw_negatives``, like the rest.
        refused: of (places among the C, items).
    """
    counts = np.diff(positives.offsets)

    def per_slot(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, negatives)

    drawn = draw_negatives(
        popularity,
        seed=seed,
        user=per_slot(np.repeat(positives.user, counts)),
        slot=per_slot(slot * negatives) + np.tile(np.arange(negatives), len(slot)),
        group=per_slot(group),
        excluded_group=excluded_group,
        excluded_item=excluded_item,
        original=partition.original_user,
        refused=refused and (lambda slots, items: refused(slots // negatives, items)),
    )
    return with_negatives(positives, drawn.reshape(-1, negatives))


def with_negatives(positives: Requests, drawn: np.ndarray) -> Requests:
    """Each of C positives followed by its negatives, (C, negatives) item ids."""
    candidates = np.column_stack([positives.candidates, drawn])
    labels = np.zeros(candidates.shape, np.int8)
    labels[:, 0] = 1
    return dataclasses.replace(
        positives,
        offsets=positives.offsets * candidates.shape[1],
        candidates=candidates.ravel().astype(np.int32, copy=False),
        labels=labels.ravel(),
    )


def contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Boolean: which ``values`` are in ``ordered`` (ascending)."""
    if len(ordered) == 0:
        return np.zeros(len(values), bool)
    position = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[position] == values


def hash64(seed: int, user: np.ndarray, slot: np.ndarray, attempt: int) -> np.ndarray:
    """(N,) uint64, uniform and independent for different keys (SplitMix64, one key after the
    other). ``draw_negatives`` uses attempts from 0 to MAX_ATTEMPTS.
    """
    state = _mix(np.full(1, seed % 2**64, np.uint64))
    for key in (user.astype(np.uint64), slot.astype(np.uint64), np.full(1, attempt, np.uint64)):
        state = _mix(state ^ key)
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64: a bijection of 64 bits in which every output bit depends on every input bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
