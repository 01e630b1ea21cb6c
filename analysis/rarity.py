"""How often training has seen the rarest id of a row.

Shapes: S candidates of a split, in the order of its requests.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from analysis.slices import Slice, range_name
from data.source import Split
from data.store import EventStore

EDGES = (1, 10, 50, 200, 1_000, 10_000)
"""Least counts of the bins; below the first one is what has no id of its own."""


class Rarity(NamedTuple):
    """Bins of a split's candidates; those without candidates are left out."""

    counted: str
    """What the bins count, as a phrase."""
    bins: list[Slice]


def rarity(store: EventStore, split: Split) -> Rarity | None:
    """Candidates by the count of their rarest id; None where the store has no counts.

    In a flat store an id counts the training rows that have it, and a row's rarest is the least of
    all columns of ids; numbers do not count. In an event store the only counts are those of items,
    over the whole log, so the candidate's item decides.
    """
    if not store.flat:
        counts = np.concatenate(
            [store.items["frequency"][p.requests(split).candidates] for p in store.partitions]
        )
        return Rarity("events of the candidate's item in the whole log", binned(counts, "never"))
    if store.info.options.get("hash_buckets") is not None or not store.context:
        return None
    counts, shared = rarest_counts(store, split)
    # id 0 also stands for the values of training that are too rare for an id
    lowest = "unseen or too rare for an id" if shared else "unseen"
    return Rarity("training rows of the rarest id", binned(counts, lowest))


def rarest_counts(store: EventStore, split: Split) -> tuple[np.ndarray, bool]:
    """(S,) training rows of the rarest id of each row of a flat store, 0 of id 0; and whether any
    training row has an id 0.
    """
    counts, shared = {}, False
    for name, _ in store.context:
        of_id = store.train_counts(name).copy()
        shared |= bool(of_id[0])
        of_id[0] = 0
        counts[name] = of_id
    rarest = []
    for partition in store.partitions:
        context = partition.requests(split).context
        least = np.full(len(next(iter(context.values()))), np.iinfo(np.int64).max)
        for name, of_id in counts.items():
            np.minimum(least, of_id[context[name]], out=least)
        rarest.append(least)
    return np.concatenate(rarest), shared


def binned(counts: np.ndarray, lowest: str) -> list[Slice]:
    """(S,) counts by :data:`EDGES`; ``lowest`` names those below the first."""
    number = np.searchsorted(EDGES, counts, side="right")
    names = [lowest, *(range_name(low, high - 1) for low, high in itertools.pairwise(EDGES))]
    names.append(f"{EDGES[-1]:,} and more")
    return [Slice(names[b], number == b) for b in np.unique(number)]
