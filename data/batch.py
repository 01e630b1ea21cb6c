"""One batch of ranking requests.

Shapes: R requests, S candidates (each belongs to one request), F fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

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
    """(R,) int64, always on the host: lengths of ``history``, known without waiting for a device."""
    candidate_counts: Tensor
    """(R,) int64, always on the host."""
    global_candidates: int
    """Candidates of the global batch, all ranks together: the denominator of the mean loss."""
    seed: int
    """Of the random draws made for this global batch; a function of (seed, epoch, batch)."""

    def to(self, device: torch.device, non_blocking: bool = False) -> RankingBatch:
        """A copy on ``device``; the two host tensors stay on the host."""
        moved = {
            name: getattr(self, name).to(device=device, non_blocking=non_blocking)
            for name in (
                "context", "history", "candidates", "request_of", "labels", "request_ids"
            )
        }  # fmt: skip
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> RankingBatch:
        """A copy in page-locked memory, from which copies to a GPU do not wait."""
        pinned = {
            name: getattr(self, name).pin_memory()
            for name in (
                "context", "history", "candidates", "request_of", "labels", "request_ids"
            )
        }  # fmt: skip
        return dataclasses.replace(self, **pinned)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory alive until ``stream`` has used it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, KeyedJaggedTensor) or (
                isinstance(value, Tensor) and value.device.type != "cpu"
            ):
                value.record_stream(stream)
