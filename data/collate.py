"""Requests of an event store as tensors, gathered from memory-mapped columns without a loop
over requests.

Shapes: R requests, T history events of theirs, S candidates of theirs, F fields.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from data.batch import RankingBatch
from data.errors import InputError
from data.slices import copy_slices, count_down
from data.source import Split
from data.store import EventStore, PartitionReader

RECENCY = "recency"
GAP = "gap"
"""Bucket of the time between an event and the request; in a store of ``order`` "file", whose time
is the position, of the number of events between them."""
_GAP_EDGES = np.array([math.isqrt(2**i - 1) + 1 for i in range(126)])
"""Least whole gaps of the buckets from 1 on: the roots of the powers of two, rounded up."""
GAP_BUCKETS = len(_GAP_EDGES) + 1
"""num_embeddings of the gap: any difference of two int64 times has its bucket."""


@dataclass(frozen=True)
class _Slices:
    """Where the history and the candidates of R requests lie in their partitions: (R,) int64."""

    user: np.ndarray
    time: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    first_candidate: np.ndarray
    last_candidate: np.ndarray

    @classmethod
    def empty(cls, count: int) -> _Slices:
        return cls(*(np.empty(count, np.int64) for _ in range(6)))


class _Partition:
    """Memory-mapped columns of one partition, with the requests of one split."""

    def __init__(self, reader: PartitionReader, split: Split) -> None:
        self.events = reader.events
        self.users = reader.users
        self.requests = reader.requests(split)

    def fill(self, slices: _Slices, where: np.ndarray, rows: np.ndarray, length: int) -> None:
        """Writes the slices of the requests ``rows`` at the places ``where``."""
        user, end = self.requests.user[rows], self.requests.end[rows]
        first_row = self.users["first_row"][np.searchsorted(self.users["user"], user)]
        slices.user[where] = user
        slices.time[where] = self.requests.time[rows]
        slices.begin[where] = np.maximum(first_row, end - length)
        slices.end[where] = end
        slices.first_candidate[where] = self.requests.offsets[rows]
        slices.last_candidate[where] = self.requests.offsets[rows + 1]


class _Group(NamedTuple):
    """The requests of a batch that are of one partition."""

    partition: _Partition
    where: np.ndarray
    """Places of the requests in the batch."""
    rows: np.ndarray
    """Rows of the requests in the partition's split."""


class Collator:
    """Makes batches of requests of one split.

    Opens the columns of every partition; what is in memory is what batches have touched.

    The fields of history and candidates are the store's, ``recency`` (1 for the last event) and,
    with ``time_gap``, ``gap``; a candidate has 0 in these two.
    """

    def __init__(
        self, store: EventStore, split: Split, *, history_length: int, time_gap: bool = False
    ) -> None:
        self._store, self._split = store, split
        self.fields = [name for name, _ in store.fields]
        self.keys = [*self.fields, RECENCY, *([GAP] if time_gap else [])]
        self.context = [name for name, _ in store.context]
        self.numbers = store.numbers
        self.history_length = history_length
        with self._damage_is_told():
            self._items = store.items
            self._partitions = [_Partition(reader, split) for reader in store.partitions]
        sizes = [len(partition.requests) for partition in self._partitions]
        self._first_request = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        """Requests of the split."""
        return int(self._first_request[-1])

    def count_candidates(self, request_ids: np.ndarray) -> int:
        """Candidates of these requests together."""
        total = 0
        for partition, _, rows in self._by_partition(request_ids):
            offsets = partition.requests.offsets
            total += int(np.sum(offsets[rows + 1] - offsets[rows], dtype=np.int64))
        return total

    def __call__(self, request_ids: np.ndarray, global_candidates: int, seed: int) -> RankingBatch:
        """The batch of ``request_ids``, (R,) int64, in this order.

        Raises:
            InputError: the store's columns do not fit together, or an id is beyond its table.
        """
        with self._damage_is_told():
            return self._batch(request_ids, global_candidates, seed)

    @contextlib.contextmanager
    def _damage_is_told(self) -> Iterator[None]:
        """Opening a store does not read its columns: what is damaged there shows only here."""
        try:
            yield
        except InputError:
            raise
        except (LookupError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(
                f"{self._store.path} is damaged: a batch of {self._split} requests cannot be made "
                f"({type(error).__name__}: {error}). twofold verify-store {self._store.path} names "
                "the file; prepare the store again, or copy it anew."
            ) from error

    def _batch(self, request_ids: np.ndarray, global_candidates: int, seed: int) -> RankingBatch:
        groups = list(self._by_partition(request_ids))
        slices = _Slices.empty(len(request_ids))
        for partition, where, rows in groups:
            partition.fill(slices, where, rows, self.history_length)
        lengths = slices.end - slices.begin
        counts = slices.last_candidate - slices.first_candidate
        items, labels = _gather_candidates(groups, slices, counts)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("a label is neither 0 nor 1")
        return RankingBatch(
            context=self._context(groups, slices),
            history=self._history(groups, slices, lengths),
            candidates=self._candidate_fields(items),
            request_of=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            labels=torch.from_numpy(labels),
            request_ids=torch.from_numpy(request_ids.copy()),  # not a view of a whole epoch
            history_lengths=torch.from_numpy(lengths),
            candidate_counts=torch.from_numpy(counts),
            global_candidates=global_candidates,
            seed=seed,
            numbers=torch.from_numpy(self._numbers(groups, len(request_ids))),
        )

    def _by_partition(self, request_ids: np.ndarray) -> Iterator[_Group]:
        number = np.searchsorted(self._first_request, request_ids, side="right") - 1
        for index in np.unique(number):
            where = np.flatnonzero(number == index)
            rows = request_ids[where] - self._first_request[index]
            yield _Group(self._partitions[index], where, rows)

    def _history(
        self, groups: list[_Group], slices: _Slices, lengths: np.ndarray
    ) -> KeyedJaggedTensor:
        ends = np.cumsum(lengths)
        values_FT = np.empty((len(self.keys), lengths.sum()), np.int64)
        for partition, where, _ in groups:
            places = slices.begin[where], lengths[where], (ends - lengths)[where]
            for field, values_T in zip(self.fields, values_FT, strict=False):
                copy_slices(partition.events[field], *places, values_T)
            if GAP in self.keys:
                copy_slices(partition.events["time"], *places, values_FT[-1])
        if GAP in self.keys:
            values_FT[-1] = gap_bucket(np.repeat(slices.time, lengths) - values_FT[-1])
        _refuse_beyond(self._store.fields, values_FT)
        values_FT[len(self.fields)] = count_down(lengths)
        return _jagged(self.keys, values_FT, lengths)

    def _candidate_fields(self, items: np.ndarray) -> KeyedJaggedTensor:
        values_FS = np.zeros((len(self.keys), len(items)), np.int64)
        for field, values_S in zip(self.fields, values_FS, strict=False):
            if field == "item":
                values_S[:] = items
            elif field != "action":  # not known yet
                values_S[:] = self._items[field][items]
        _refuse_beyond(self._store.fields, values_FS)
        return _jagged(self.keys, values_FS)

    def _context(self, groups: list[_Group], slices: _Slices) -> KeyedJaggedTensor:
        values_FR = np.empty((len(self.context) + 1, len(slices.user)), np.int64)
        values_FR[0] = slices.user
        for partition, where, rows in groups:
            for name, values_R in zip(self.context, values_FR[1:], strict=True):
                values_R[where] = partition.requests.context[name][rows]
        _refuse_beyond([("user", self._store.users), *self._store.context], values_FR)
        return _jagged(["user", *self.context], values_FR)

    def _numbers(self, groups: list[_Group], count: int) -> np.ndarray:
        values_RN = np.empty((count, len(self.numbers)), np.float32)
        for partition, where, rows in groups:
            for column, name in enumerate(self.numbers):
                values_RN[where, column] = partition.requests.numbers[name][rows]
        return values_RN


def _refuse_beyond(fields: Sequence[tuple[str, int]], values_FN: np.ndarray) -> None:
    """Raises IndexError for an id beyond its field's table: a table's kernel would read other
    memory there. ``fields``: (name, num_embeddings) of the first rows.
    """
    for (name, size), values_N in zip(fields, values_FN, strict=False):
        # seen as unsigned, what is negative is large
        if len(values_N) and (largest := values_N.view(np.uint64).max()) >= size:
            found = largest.astype(np.int64)
            raise IndexError(f"id {found} of {name}, whose ids end at {size - 1}")


def gap_bucket(gap: np.ndarray) -> np.ndarray:
    """``1 + floor(2 * log2(gap))`` of integers from 1 up, exactly; 0 below 1.

    Two buckets for each doubling: whatever the unit of time, a gap is known to about a fifth.

    >>> gap_bucket(np.array([0, 1, 2, 3, 4, 5, 6, 3600, 86400])).tolist()
    [0, 1, 3, 4, 5, 5, 6, 24, 33]
    """
    return np.searchsorted(_GAP_EDGES, gap, side="right")


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[0], starts[0] + 1, ...``, ``lengths[0]`` of them, then those of the next start.

    >>> ranges(np.array([5, 9, 2]), np.array([2, 0, 3])).tolist()
    [5, 6, 2, 3, 4]
    """
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)


def _gather_candidates(
    groups: list[_Group], slices: _Slices, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Item ids, (S,) int64, and labels, (S,) float32."""
    ends = np.cumsum(counts)
    items = np.empty(counts.sum(), np.int64)
    labels = np.empty(len(items), np.float32)
    for partition, where, _ in groups:
        rows = ranges(slices.first_candidate[where], counts[where])
        places = ranges((ends - counts)[where], counts[where])
        items[places] = partition.requests.candidates[rows]
        labels[places] = partition.requests.labels[rows]
    return items, labels


def _jagged(
    keys: list[str], values: np.ndarray, lengths: np.ndarray | None = None
) -> KeyedJaggedTensor:
    """A row of ``values`` for each key, all with the same ``lengths``; none means bags of one."""
    fields, width = values.shape
    if lengths is None:
        lengths = np.ones(width, np.int64)
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(values.reshape(-1)),
        lengths=torch.from_numpy(np.tile(lengths, fields)),
        stride=len(lengths),
        # known here; computed later it would make the host wait for the device
        length_per_key=[width] * fields,
        offset_per_key=[width * field for field in range(fields + 1)],
    )
