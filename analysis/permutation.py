"""One field of a split, dealt anew over all its requests or candidates: what does a model lose?

Shapes: R requests of a split, S candidates of theirs, N numbers of a request; r and s of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from data.batch import RankingBatch
from data.collate import ranges
from data.source import Requests, Split
from data.store import EventStore

Kind = Literal["candidate", "context", "number"]


class ReadField(NamedTuple):
    """A field that a model reads."""

    name: str
    kind: Kind
    """candidate: ids of the candidates; context: ids of the requests, their users' among them;
    number: a float column of the requests."""


def permuted(
    store: EventStore, split: Split, field: ReadField, seed: int
) -> Callable[[RankingBatch], RankingBatch]:
    """What changes a batch of the split, on any device, into one whose ``field`` is permuted.

    The permutation is over the whole split: of the S candidates for a field of theirs, else of the
    R requests. It is drawn from ``seed`` alone, so the ranks of any world size agree about it. A
    field keeps its values and their frequencies and loses what they had to do with all else
    (permutation importance: Breiman 2001, https://doi.org/10.1023/A:1010933404324). Held is one
    column.
    """
    values = np.random.default_rng(seed).permutation(_column(store, split, field))
    if field.kind == "number":
        number = store.numbers.index(field.name)

        def of_numbers(batch: RankingBatch) -> RankingBatch:
            numbers = batch.numbers.clone()
            numbers[:, number] = torch.from_numpy(values[batch.request_ids.cpu().numpy()])
            return dataclasses.replace(batch, numbers=numbers)

        return of_numbers
    if field.kind == "context":

        def of_requests(batch: RankingBatch) -> RankingBatch:
            ids = values[batch.request_ids.cpu().numpy()]
            return dataclasses.replace(batch, context=_replaced(batch.context, field.name, ids))

        return of_requests
    first = _first_candidates(store, split)

    def of_candidates(batch: RankingBatch) -> RankingBatch:
        places = ranges(first[batch.request_ids.cpu().numpy()], batch.candidate_counts.numpy())
        changed = _replaced(batch.candidates, field.name, values[places])
        return dataclasses.replace(batch, candidates=changed)

    return of_candidates


def _column(store: EventStore, split: Split, field: ReadField) -> np.ndarray:
    """(S,) or (R,) values of a field, in the order of the split's requests."""
    if field.kind == "candidate":
        items = _joined(store, split, lambda requests: requests.candidates)
        return items if field.name == "item" else store.items[field.name][items]
    if field.kind == "number":
        return _joined(store, split, lambda requests: requests.numbers[field.name])
    if field.name == "user":
        return _joined(store, split, lambda requests: requests.user)
    return _joined(store, split, lambda requests: requests.context[field.name])


def _first_candidates(store: EventStore, split: Split) -> np.ndarray:
    """(R,) number, in the split, of the first candidate of each request."""
    counts = _joined(store, split, lambda requests: np.diff(requests.offsets))
    return np.cumsum(counts) - counts


def _joined(
    store: EventStore, split: Split, column: Callable[[Requests], np.ndarray]
) -> np.ndarray:
    return np.concatenate([column(partition.requests(split)) for partition in store.partitions])


def _replaced(bags: KeyedJaggedTensor, key: str, ids: np.ndarray) -> KeyedJaggedTensor:
    """Bags of one with other ``ids``, one a bag, of one key."""
    keys = bags.keys()
    values = bags.values().view(len(keys), -1).clone()
    values[keys.index(key)] = torch.from_numpy(ids)
    return KeyedJaggedTensor(
        keys=keys,
        values=values.flatten(),
        lengths=bags.lengths(),
        stride=bags.stride(),
        length_per_key=bags.length_per_key(),
        offset_per_key=bags.offset_per_key(),
    )
