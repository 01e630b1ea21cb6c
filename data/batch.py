"""One batch of ranking requests.

Shapes: R requests, S candidates (each belongs to one request), F fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class RankingBatch(Pipelineable):
    """R requests, S candidates, jagged histories: this rank's slice of a global batch."""

    context: KeyedJaggedTensor
    """Stride R, bags of one: "user" and the request's context columns."""
    history: KeyedJaggedTensor
    """Stride R: item, category, side columns, action, recency; values in time order.
    Recency is the rank from the end: 1 for the most recent event."""
    candidates: KeyedJaggedTensor
    """Stride S, bags of one: the same keys as ``history``; action and recency are 0."""
    request_of: Tensor
    """(S,) int64: request of each candidate, ascending."""
    labels: Tensor
    """(S,) float32: 0 or 1."""
    request_ids: Tensor
    """(R,) int64: number of each request in its split, the same in every epoch and world size."""
    history_lengths: Tensor
    """(R,) int64, always on the host: lengths of ``history`` without a wait for the device."""
    candidate_counts: Tensor
    """(R,) int64, always on the host."""
    global_candidates: int
    """Candidates of the global batch, all ranks together: the denominator of the mean loss."""
    seed: int
    """Of the random draws made for this global batch; a function of (seed, epoch, batch)."""
    numbers: Tensor = None  # type: ignore[assignment]
    """(R, N) float32: the requests' float columns, NaN where missing; none (N = 0) by default."""

    def __post_init__(self) -> None:
        if self.numbers is None:
            self.numbers = self.labels.new_empty(len(self.request_ids), 0)

    def to(self, device: torch.device, non_blocking: bool = False) -> RankingBatch:
        """A copy on ``device``; the two host tensors stay on the host."""
        return self._each(lambda value: value.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> RankingBatch:
        """A copy in page-locked memory, from which copies to a GPU do not wait."""
        return self._each(lambda value: value.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of a batch on a GPU alive until ``stream`` has used it."""
        for name in _ON_DEVICE:
            getattr(self, name).record_stream(stream)

    def _each(self, change: Callable[[Any], Any]) -> RankingBatch:
        changed = {name: change(getattr(self, name)) for name in _ON_DEVICE}
        return dataclasses.replace(self, **changed)


_ON_DEVICE = (
    *("context", "history", "candidates"),
    *("request_of", "labels", "request_ids", "numbers"),
)
