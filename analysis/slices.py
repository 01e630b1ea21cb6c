"""Parts of a split: by length of the history, activity of the user, category of the candidate.

Shapes: S candidates of a split, in the order of its requests.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.source import Split
from data.store import EventStore

BUCKETS = 5
CATEGORIES = 10


@dataclass(frozen=True)
class CandidateFacts:
    """(S,) each."""

    history_length: np.ndarray
    """Events before the request, whatever the model keeps of them."""
    user_events: np.ndarray
    """Events of the user in the whole log."""
    category: np.ndarray


class Slice(NamedTuple):
    """Some of the candidates."""

    label: str
    chosen: np.ndarray
    """(S,) bool."""


def candidate_facts(store: EventStore, split: Split) -> CandidateFacts:
    """Of every candidate of a split."""
    category_of = store.items["category"]
    parts = []
    for partition in store.partitions:
        requests, users = partition.requests(split), partition.users
        place = np.searchsorted(users["user"], requests.user)
        counts = np.diff(requests.offsets)
        parts.append(
            (
                np.repeat(requests.end - users["first_row"][place], counts),
                np.repeat(users["count"][place], counts),
                category_of[requests.candidates],
            )
        )
    return CandidateFacts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def slices(store: EventStore, split: Split) -> dict[str, list[Slice]]:
    """Name -> parts that do not overlap, together all candidates."""
    facts = candidate_facts(store, split)
    return {
        "length of the history": by_size(facts.history_length),
        "events of the user": by_size(facts.user_events),
        "category of the candidate": by_category(store, facts.category),
    }


def by_size(values: np.ndarray, buckets: int = BUCKETS) -> list[Slice]:
    """Parts of about equally many candidates, small values first; equal values stay together."""
    inner = np.quantile(values, np.arange(1, buckets) / buckets, method="higher")
    edges = np.unique([values.min(), *inner, values.max() + 1])
    return [
        Slice(range_name(low, high - 1), (values >= low) & (values < high))
        for low, high in itertools.pairwise(edges)
    ]


def by_category(store: EventStore, category: np.ndarray, most: int = CATEGORIES) -> list[Slice]:
    """The most frequent categories, the most frequent first, and all others."""
    ids, counts = np.unique(category, return_counts=True)
    frequent = ids[np.argsort(-counts, kind="stable")[:most]]
    originals = store.originals("category")
    parts = [
        Slice(name_of(originals[int(number)].as_py()), category == number) for number in frequent
    ]
    if len(ids) > most:
        parts.append(Slice("all others", ~np.isin(category, frequent)))
    return parts


def name_of(original: object) -> str:
    """Of a category as in the log; id 0 has none."""
    return "unknown" if original is None else str(original)


def range_name(low: int, high: int) -> str:
    """Whole numbers from ``low`` to ``high``, both included."""
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
