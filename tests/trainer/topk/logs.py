"""A log to see through: what was bought before, in and after the validation period."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.prepare import prepare
from data.sources.table import TableSource

Event = tuple[str, str, int]
"""User, item, time."""

VALIDATION, TEST = 100, 200
TRAINING: list[Event] = [
    ("ann", "a", 1), ("ann", "b", 1), ("ann", "c", 2), ("ann", "a", 3),
    ("bob", "a", 1), ("bob", "d", 5),
    ("cid", "c", 2), ("cid", "a", 4),
]  # fmt: skip
FUTURE: list[Event] = [
    # eve has bought nothing before: nobody can say what she will
    ("ann", "a", 100), ("ann", "d", 101), ("ann", "b", 200), ("ann", "e", 201),
    ("bob", "b", 110), ("bob", "f", 210), ("bob", "f", 215),
    ("cid", "c", 105), ("cid", "c", 205),
    ("eve", "a", 102), ("eve", "b", 205),
]  # fmt: skip
OTHER_FUTURE: list[Event] = [
    # other purchases of the same items at the same times
    ("ann", "e", 100), ("ann", "f", 101), ("ann", "d", 200), ("ann", "d", 201),
    ("bob", "c", 110), ("bob", "c", 210), ("bob", "b", 215),
    ("cid", "b", 105), ("cid", "d", 205),
    ("eve", "d", 102), ("eve", "e", 205),
]  # fmt: skip
ITEMS = "abcdef"
BY_ID = "?beadfc"
"""Items of the small store by id, laid out by their events in training."""


def write_store(folder: Path, future: list[Event] = FUTURE, **options: object) -> Path:
    """The store of TRAINING and a future; items have the ids of BY_ID, users are 0 for zoe, ann 1,
    bob 2, cid 3, eve 4.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # zoe buys every item at the very start, in order, and nothing later
    shown = [("zoe", item, 0) for item in ITEMS]
    lines = [f"{user},{item},{time}" for user, item, time in (*shown, *TRAINING, *future)]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    source = TableSource(
        path=folder / "log.csv", negatives=1, val_start=VALIDATION, test_start=TEST, **options
    )
    prepare(source, folder / "store", partitions=2)
    return folder / "store"


def write_groups(folder: Path, users: int = 60, group: int = 30) -> Path:
    """A store of users who buy from one half of the items alone: 12 of them in training, others
    after it. Who knows the half knows all there is to know.
    """
    rng = np.random.default_rng(0)
    lines = []
    for user in range(users):
        items = rng.permutation(group) + group * (user % 2)
        times = [*range(12), *range(VALIDATION, VALIDATION + 6), *range(TEST, TEST + 8)]
        lines += [(f"u{user}", f"i{item}", at) for item, at in zip(items, times, strict=False)]
    lines.sort(key=lambda event: event[2])
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["user,item,time", *(f"{u},{i},{t}" for u, i, t in lines)])
    (folder / "log.csv").write_text(text + "\n")
    source = TableSource(
        path=folder / "log.csv", negatives=1, val_start=VALIDATION, test_start=TEST
    )
    prepare(source, folder / "store", partitions=3)
    return folder / "store"
