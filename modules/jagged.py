"""Jagged histories seen as a few dense blocks.

Shapes: R requests, S candidates, N events of all histories together (jagged);
in a block: B requests, L events (padded), C candidates (padded).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_EVENTS = 65_536
"""Events in a block, padding included: large enough for matrix products, small enough that the
gathered keys (12 MB at 48 floats) stay near the cache."""
BLOCK_SCORES = 4_194_304
"""Scores in a block (B * C * L): bounds the memory where requests rank many candidates. A single
request is never divided, whatever its scores."""


@dataclass(frozen=True)
class Block:
    """Requests of similar history length: row numbers, not data, so that nothing is copied until
    a block is worked on, and no tensor is ever padded to the longest history of the batch.
    """

    rows: Tensor
    """(B, L) int64: row of each event in the jagged history; padding repeats row 0."""
    row_mask: Tensor
    """(B, L) bool: True where there is an event."""
    candidates: Tensor
    """(B, C) int64: number of each candidate; padding is S, one past the last."""
    first_row: int | None
    """Where ``rows`` begin, if they follow each other without padding; else None."""


def first_rows(lengths: Tensor) -> Tensor:
    """Exclusive cumulative sum: where each piece of a jagged tensor begins."""
    return lengths.cumsum(0) - lengths


def blocks(
    history_lengths: Tensor, candidate_counts: Tensor, device: torch.device
) -> Iterator[Block]:
    """Splits a batch into blocks. Requests without history are in none.

    Args:
        history_lengths: (R,) int64 on the host, so that no device is waited for.
        candidate_counts: (R,) int64 on the host.
        device: where the blocks go.
    """
    order = history_lengths.argsort(descending=True, stable=True)
    sorted_lengths = history_lengths[order]
    first_row, first_candidate = first_rows(history_lengths), first_rows(candidate_counts)
    num_candidates = int(candidate_counts.sum())
    begin, with_history = 0, int((history_lengths > 0).sum())
    while begin < with_history:
        longest = int(sorted_lengths[begin])
        at_least_half = int((sorted_lengths * 2 >= longest).sum())
        fit = min(BLOCK_EVENTS, BLOCK_SCORES // int(candidate_counts.max())) // longest
        end = min(begin + max(1, fit), at_least_half)
        chosen = order[begin:end]
        rows, row_mask = _padded(first_row[chosen], history_lengths[chosen], padding=0)
        candidates, _ = _padded(
            first_candidate[chosen], candidate_counts[chosen], padding=num_candidates
        )
        starts = first_row[chosen]
        follow = starts == starts[0] + longest * torch.arange(end - begin)
        yield Block(
            rows.to(device, non_blocking=True),
            row_mask.to(device, non_blocking=True),
            candidates.to(device, non_blocking=True),
            int(starts[0]) if follow.all() and row_mask.all() else None,
        )
        begin = end


def _padded(first: Tensor, lengths: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """(B, longest) numbers ``first, first + 1, ...`` and the mask of those within ``lengths``."""
    step = torch.arange(int(lengths.max()))
    mask = step < lengths[:, None]
    return torch.where(mask, first[:, None] + step, padding), mask
