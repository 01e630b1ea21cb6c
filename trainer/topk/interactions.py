"""Who bought what before validation begins, and what they bought after.

Shapes: U users, I items (row 0 is the unknown item), N training events.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import InputError
from data.source import SPLITS, Split
from data.store import EventStore
from trainer.topk.experiment import Candidates


@dataclass(frozen=True)
class Bought:
    """Different items of each user."""

    num_items: int
    """I: item ids are below it."""
    offsets: np.ndarray
    """(U + 1,) int64: items of user u are ``items[offsets[u]:offsets[u + 1]]``."""
    items: np.ndarray
    """int64, ascending within each user."""

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> Bought:
        """Of purchases in any order, repeated ones too."""
        keys = np.unique(users.astype(np.int64) * num_items + items)
        counts = np.bincount(keys // num_items, minlength=num_users)
        return cls(num_items, np.concatenate([[0], np.cumsum(counts)]), keys % num_items)

    @cached_property
    def users(self) -> np.ndarray:
        """Of each item of ``items``."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    @cached_property
    def counts(self) -> np.ndarray:
        """(U,) items of each user."""
        return np.diff(self.offsets)

    def contains(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Did the users buy the items? Both of one shape, as the answer."""
        if not len(self.items):
            return np.zeros(np.shape(users), bool)
        wanted = users * self.num_items + items
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return self._keys[place] == wanted

    @cached_property
    def _keys(self) -> np.ndarray:
        """Ascending: user, then item."""
        return self.users * self.num_items + self.items


@dataclass(frozen=True)
class Interactions:
    """The log of a store, cut at the moments where validation and test begin.

    No event of those periods is in what a model learns from or looks at. All of it is in memory:
    24 bytes for each training event, and about as much for the different pairs of them.
    """

    num_users: int
    num_items: int
    user: np.ndarray
    """(N,) int64, ascending; training events are sorted by (user, time)."""
    item: np.ndarray
    """(N,) int64."""
    time: np.ndarray
    """(N,) int64."""
    truth: dict[Split, Bought]
    """What was bought in the validation and test periods."""

    @classmethod
    def of(cls, store: EventStore) -> Interactions:
        """Reads the whole log.

        A period lies between the first and the last request of its split; training begins with the
        log and test ends with it. What few events lie between two periods belong to neither.

        Raises:
            InputError: the store has no users, no clock, events that are no purchases, no requests
                of a split, or splits that were not cut by time.
        """
        periods = split_periods(store)
        num_users, num_items = store.info.users, store.fields[0][1]
        parts = [(_users_of(part.users), part.events) for part in store.partitions]
        # partitions hold users by a hash: together they are not in order
        user = np.concatenate([users for users, _ in parts])
        item, time = (
            np.concatenate([events[name] for _, events in parts]) for name in ("item", "time")
        )
        order = np.argsort(user, kind="stable")
        user, item, time = user[order], item[order].astype(np.int64), time[order]

        def during(split: Split) -> np.ndarray:
            first, last = periods[split]
            return (time >= first) & (time <= last)

        train = during("train")
        truth = {
            split: Bought.of(user[during(split)], item[during(split)], num_users, num_items)
            for split in ("val", "test")
        }
        return cls(num_users, num_items, user[train], item[train], time[train], truth)

    @cached_property
    def bought(self) -> Bought:
        """What each user bought in training."""
        return Bought.of(self.user, self.item, self.num_users, self.num_items)

    @cached_property
    def first_row(self) -> np.ndarray:
        """(U + 1,) int64: training events of user u are rows ``first_row[u]:first_row[u + 1]``."""
        return np.searchsorted(self.user, np.arange(self.num_users + 1))

    @cached_property
    def frequency(self) -> np.ndarray:
        """(I,) training events of each item."""
        return np.bincount(self.item, minlength=self.num_items)

    def wanted(self, split: Split, candidates: Candidates) -> Bought:
        """What is to be found in a split: of users who bought something in training, and of
        ``"new"`` what they did not buy there.
        """
        truth = self.truth[split]
        users = truth.users
        kept = self.bought.counts[users] > 0
        if candidates == "new":
            kept &= ~self.bought.contains(users, truth.items)
        return Bought.of(users[kept], truth.items[kept], self.num_users, self.num_items)


def split_periods(store: EventStore) -> dict[Split, tuple[int, int]]:
    """First and last moment of each split, both inclusive.

    Raises:
        InputError: see :meth:`Interactions.of`.
    """
    if store.flat:
        raise InputError(
            f"{store.path} holds rows without users: there is nobody to rank items for. "
            "Take a store with histories, e.g. of twofold prepare completejourney."
        )
    if store.info.options.get("label"):
        raise InputError(
            f"{store.path} was prepared with a label: its events include what users did not take. "
            "Prepare it from the taken ones alone, without --label."
        )
    if "action" in {name for name, _ in store.fields}:
        raise InputError(
            f"{store.path} was prepared with --action: its events are of several kinds, and topk "
            "takes every event for a purchase. Prepare it from the wanted kind alone, without "
            "--action."
        )
    if store.info.order != "time":
        raise InputError(
            f"{store.path} was prepared with --order file, so it does not know when validation "
            "begins. Prepare it again by time."
        )
    seen: dict[Split, tuple[int, int]] = {}
    for split in SPLITS:
        times = np.concatenate([part.requests(split).time for part in store.partitions])
        if not len(times):
            raise InputError(
                f"{store.path} has no {split} requests, by which the split's time is known. "
                "twofold prepare table --help names the options that set it."
            )
        seen[split] = int(times.min()), int(times.max())
    if not seen["train"][1] < seen["val"][0] <= seen["val"][1] < seen["test"][0]:
        raise InputError(
            f"The splits of {store.path} overlap in time, so what came before validation is not "
            "defined. Prepare it with splits by time, e.g. --val-start and --test-start."
        )
    limit = np.iinfo(np.int64)
    return {
        "train": (int(limit.min), seen["train"][1]),
        "val": seen["val"],
        "test": (seen["test"][0], int(limit.max)),
    }


def _users_of(users: dict[str, np.ndarray]) -> np.ndarray:
    return np.repeat(users["user"], users["count"])
