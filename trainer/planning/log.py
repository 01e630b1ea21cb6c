"""What a plan has to know of a log: sizes of tables, lengths of histories, frequencies of ids."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.collate import RECENCY
from data.errors import InputError
from data.store import EventStore
from sharding.frequency import RowFrequency

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""That a file may give of the lengths of histories."""
KEYS = {
    "name", "requests", "candidates", "users", "skew", "history", "fields", "context", "numbers",
}  # fmt: skip
EVENTS_READ = 4_000_000
"""Of the first partition, to count a column that only events or requests have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Log:
    """A log that is at hand, or one that is described; :class:`trainer.build.Schema` is a part."""

    name: str
    fields: list[tuple[str, int]]
    context: list[tuple[str, int]]
    numbers: list[str]
    users: int
    flat: bool
    requests: int
    """Of training: an epoch."""
    candidates: float
    """Of a request, the mean."""
    lengths: np.ndarray
    """Events before each training request, or as many quantiles of them."""
    frequencies: dict[str, RowFrequency]
    """Of ids of events, by field; those of a field that is missing count as equally frequent."""
    context_frequencies: dict[str, RowFrequency]
    """The same of requests' columns, which may be called as fields are."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What plan.json says of it."""

    def kept(self, limit: int) -> np.ndarray:
        """Lengths of histories of which the last ``limit`` events are kept."""
        return np.minimum(self.lengths, limit)

    def context_frequency(self, name: str, num_embeddings: int) -> RowFrequency:
        """Of the ids of a column of requests."""
        known = self.context_frequencies.get(name)
        return known if known is not None else RowFrequency.uniform(num_embeddings)

    def frequency(self, name: str, num_embeddings: int, limit: int) -> RowFrequency:
        """Of the ids of a field, in histories of at most ``limit`` events."""
        if name == RECENCY and len(self.lengths):
            # rank j stands in every history of j events or more
            longer = np.bincount(self.kept(limit), minlength=num_embeddings)[::-1].cumsum()[::-1]
            longer[0] = 0
            return RowFrequency.counted(longer[:num_embeddings])
        known = self.frequencies.get(name)
        return known if known is not None else RowFrequency.uniform(num_embeddings)

    @classmethod
    def of_store(cls, store: EventStore) -> Log:
        """Reads a prepared store: counts and the columns that say lengths and frequencies.

        Raises:
            InputError: one without training requests.
        """
        info = store.info
        if not info.requests["train"]:
            raise InputError(
                f"{store.path} has no training requests: there are no lengths of histories to plan "
                "for. Prepare it from a longer log, or describe one by --tables FILE.toml."
            )
        return cls(
            name=info.source,
            fields=store.fields,
            context=store.context,
            numbers=store.numbers,
            users=store.users,
            flat=store.flat,
            requests=info.requests["train"],
            candidates=info.candidates["train"] / info.requests["train"],
            lengths=_lengths(store),
            frequencies={} if store.flat else _frequencies(store),
            context_frequencies=_context_frequencies(store),
            facts={"source": info.source, "fingerprint": info.fingerprint},
        )

    @classmethod
    def of_file(cls, path: Path) -> Log:
        """Reads the description of a log; docs/planning.md has the form.

        Raises:
            InputError: it cannot be read, or says too little or too much.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--tables {path} cannot be read: {error}") from error
        if unknown := content.keys() - KEYS:
            raise InputError(
                f"--tables {path}: unknown keys {sorted(unknown)}; there are {sorted(KEYS)}."
            )
        try:
            return _described(content, path)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(
                f"--tables {path}: {what}. It wants requests and candidates (numbers), "
                "[fields] and [context] with rows by name, and [history] with p50, p90, p99, max; "
                "docs/planning.md has an example."
            ) from error


def _described(content: dict[str, Any], path: Path) -> Log:
    fields, context = _rows(content.get("fields", {})), _rows(content.get("context", {}))
    if not fields and not context:
        raise ValueError("no tables: [fields] and [context] are empty")
    requests, candidates = int(content["requests"]), float(content["candidates"])
    users, skew = int(content.get("users", requests)), float(content.get("skew", 1.0))
    if min(requests, users) < 1 or not 0 < candidates < np.inf or not 0 <= skew < 10:
        raise ValueError("requests, candidates and users must be positive, skew from 0 to 10")
    numbers = content.get("numbers", [])
    if not isinstance(numbers, list) or not all(isinstance(name, str) for name in numbers):
        raise ValueError(f'numbers is a list of names, as ["age"], got {numbers!r}')
    names = Counter([RECENCY, *(name for name, _ in [*fields, *context]), *numbers])
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(
            f"two columns are called {', '.join(twice)} ({RECENCY} is always there): rename one"
        )
    if fields and "history" not in content:
        raise ValueError("[history] is missing: fields of events want its lengths")
    return Log(
        name=str(content.get("name", path.stem)),
        fields=fields,
        context=context,
        numbers=numbers,
        users=users,
        flat=not fields,
        requests=requests,
        candidates=candidates,
        lengths=_of_quantiles(content.get("history", {})),
        frequencies=_zipf(fields, skew),
        context_frequencies=_zipf(context, skew),
        facts={"source": path.name, "skew": skew},
    )


def _rows(given: Mapping[str, Any]) -> list[tuple[str, int]]:
    """``item = 10`` or ``column = {rows = 10, count = 3}``, which is column_0, column_1, ..."""
    found: list[tuple[str, int]] = []
    for name, value in given.items():
        if isinstance(value, Mapping):
            if value.keys() != {"rows", "count"} or int(value["count"]) < 1:
                raise ValueError(f"{name} wants a number of rows, or {{ rows = 10, count = 3 }}")
            found += [(f"{name}_{i}", int(value["rows"])) for i in range(int(value["count"]))]
        else:
            found.append((name, int(value)))
    if any(rows < 1 for _, rows in found):
        raise ValueError("every table has one row at least")
    return found


def _of_quantiles(given: Mapping[str, Any]) -> np.ndarray:
    """(1000,) lengths, straight lines between the quantiles that are given."""
    if not given:
        return np.zeros(0, np.int64)
    if set(given) - set(QUANTILES) or "max" not in given:
        raise ValueError(f"[history] takes {', '.join(QUANTILES)}, and max at least")
    at = [0.0, *(QUANTILES[name] for name in QUANTILES if name in given)]
    lengths = [0.0, *(float(given[name]) for name in QUANTILES if name in given)]
    if any(not low <= high < np.inf for low, high in pairwise(lengths)):
        raise ValueError("[history] must rise from p50 to max")
    return np.interp((np.arange(1000) + 0.5) / 1000, at, lengths).astype(np.int64)


def _lengths(store: EventStore) -> np.ndarray:
    if store.flat:
        return np.zeros(0, np.int64)
    found = []
    for partition in store.partitions:
        requests, users = partition.requests("train"), partition.users
        first = users["first_row"][np.searchsorted(users["user"], requests.user)]
        found.append(requests.end - first)
    return np.concatenate(found)


def _zipf(columns: list[tuple[str, int]], skew: float) -> dict[str, RowFrequency]:
    return {name: RowFrequency.zipf(rows, skew) for name, rows in columns if rows > 1}


def _frequencies(store: EventStore) -> dict[str, RowFrequency]:
    of_items = store.items["frequency"]
    found = {"item": RowFrequency.counted(of_items)}
    events = store.partitions[0].events
    for name, rows in store.fields:
        column = store.items.get(name)
        if name != "item" and column is not None:
            counts = np.bincount(column, weights=of_items, minlength=rows)
            found[name] = RowFrequency.counted(counts)
        elif name != "item" and name in events:
            counts = np.bincount(events[name][:EVENTS_READ], minlength=rows)
            found[name] = RowFrequency.counted(counts)
    return found


def _context_frequencies(store: EventStore) -> dict[str, RowFrequency]:
    if store.flat and store.info.options.get("hash_buckets") is not None:
        return {}
    if store.flat:
        return {name: RowFrequency.counted(store.train_counts(name)) for name, _ in store.context}
    of_requests = store.partitions[0].requests("train").context
    return {
        name: RowFrequency.counted(np.bincount(of_requests[name][:EVENTS_READ], minlength=rows))
        for name, rows in store.context
    }
