"""How attention drifts with the time that has passed since an event.

Shapes: S candidates, K chosen events, R requests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from data.batch import RankingBatch
from data.collate import ranges
from data.source import Requests, Split
from data.store import EventStore, PartitionReader
from modules.ranker import RankerOutput

HOUR, DAY = 3_600, 86_400
EDGES = np.array(
    [0, HOUR, 6 * HOUR, *(DAY * days for days in (1, 2, 4, 7, 14, 28, 56, 112, 224, 448, 896))]
)
"""Seconds; the last bin has no end."""
UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e8, 1.0))
"""The latest time of a log is at least the first number (1973) -> seconds of its unit."""


def seconds_of_unit(store: EventStore) -> float | None:
    """Of the log's times, told by their size; None where they are positions, or small numbers."""
    if store.info.order != "time":
        return None
    latest = max(
        (int(times.max()) for part in store.partitions if len(times := part.events["time"])),
        default=0,
    )
    return next((seconds for least, seconds in UNITS if latest >= least), None)


class _Part(NamedTuple):
    reader: PartitionReader
    requests: Requests


class AttentionByLag:
    """Share of the attention by age of the event: learned, and if all events weighed the same."""

    def __init__(
        self, store: EventStore, split: Split, seconds: float, device: torch.device
    ) -> None:
        """``seconds``: of the unit of the log's times."""
        self._parts = [_Part(part, part.requests(split)) for part in store.partitions]
        self._first = np.cumsum([0, *(len(part.requests) for part in self._parts)])
        self._seconds, self._device = seconds, device
        self._learned, self._uniform = np.zeros(len(EDGES)), np.zeros(len(EDGES))
        self._candidates = 0

    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch; works on the host."""
        request_ids = batch.request_ids.cpu().numpy()
        recency, weight = output.recency.cpu().numpy(), output.weights.double().cpu().numpy()
        of_candidate = batch.request_of.cpu().numpy()
        lengths, counts = batch.history_lengths.numpy(), batch.candidate_counts.numpy()
        self._candidates += int(counts[lengths > 0].sum())
        number = np.searchsorted(self._first, request_ids, side="right") - 1
        for index in np.unique(number):
            requests, time = self._parts[index].requests, self._parts[index].reader.events["time"]
            where = np.flatnonzero(number == index)
            row = np.zeros(len(request_ids), np.int64)
            row[where] = request_ids[where] - self._first[index]
            end, now = requests.end[row], requests.time[row]
            # all events of the histories
            every = ranges(end[where] - lengths[where], lengths[where])
            share = np.repeat(counts[where] / np.maximum(lengths[where], 1), lengths[where])
            self._uniform += self._binned(
                np.repeat(now[where], lengths[where]) - time[every], share
            )
            # and the chosen ones
            s, k = np.nonzero((recency > 0) & (number == index)[of_candidate][:, None])
            request = of_candidate[s]
            age = now[request] - time[end[request] - recency[s, k]]
            self._learned += self._binned(age, weight[s, k])

    def _binned(self, age: np.ndarray, value: np.ndarray) -> np.ndarray:
        place = np.searchsorted(EDGES, age * self._seconds, side="right") - 1
        return np.bincount(place.clip(min=0), value, minlength=len(EDGES))

    def to_json(self) -> dict[str, Any]:
        """Over all ranks: collective."""
        sums = torch.from_numpy(
            np.concatenate([self._learned, self._uniform, [self._candidates]])
        ).to(self._device)
        dist.all_reduce(sums)
        learned, uniform = (sums[:-1].view(2, -1) / sums[-1].clamp(min=1)).tolist()
        return {
            "from_days": (EDGES / DAY).tolist(),
            "learned": learned,
            "uniform": uniform,
            "candidates": int(sums[-1].item()),
        }
