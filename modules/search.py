"""What a search returns, and the ways to choose without one.

Shapes: S candidates, N events of all histories together, K kept, M others; in a block B requests,
L events, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from modules.bags import Ids
from modules.jagged import Block, blocks, first_rows
from modules.ordering import ascending, highest


class Selection(NamedTuple):
    """Events chosen for each candidate."""

    rows: Tensor
    """(S, K) int64 rows of the jagged history; 0 where not ``valid``."""
    valid: Tensor
    """(S, K) bool: False beyond the end of a short history."""


@dataclass(frozen=True)
class Histories:
    """A batch of requests as search and attention see it."""

    events: Ids
    """Of the N events."""
    candidates: Ids
    """Of the S candidates."""
    request_of: Tensor
    """(S,) request of each candidate."""
    lengths: Tensor
    """(R,) events of each history, on the host."""
    counts: Tensor
    """(R,) candidates of each request, on the host."""
    first_row: Tensor
    """(S,) where each candidate's history begins."""
    length: Tensor
    """(S,) events in it."""

    @classmethod
    def of(
        cls, events: Ids, candidates: Ids, request_of: Tensor, lengths: Tensor, counts: Tensor
    ) -> Histories:
        """The rest follows from these."""
        device = request_of.device
        return cls(
            events,
            candidates,
            request_of,
            lengths,
            counts,
            first_row=first_rows(lengths).to(device, non_blocking=True)[request_of],
            length=lengths.to(device, non_blocking=True)[request_of],
        )

    @cached_property
    def blocks(self) -> list[Block]:
        """Made where they are worked on: a search in one kernel needs none."""
        return list(blocks(self.lengths, self.counts, self.request_of.device))

    def of_lengths(self, lengths: Tensor) -> Histories:
        """The same requests with histories of something else, ``lengths`` of them."""
        return Histories.of(self.events, self.candidates, self.request_of, lengths, self.counts)

    def age_of(self, chosen: Selection) -> Tensor:
        """(S, K) rank of the chosen events from the end of the history, 0 where not valid."""
        return ((self.first_row + self.length)[:, None] - chosen.rows) * chosen.valid

    def ages(self) -> Tensor:
        """(N,) rank of each event from the end of its history."""
        total = int(self.lengths.sum())
        ends = self.lengths.cumsum(0).repeat_interleave(self.lengths, output_size=total)
        return (ends - torch.arange(total)).to(self.request_of.device, non_blocking=True)


@torch.no_grad()
def top_k(
    rank: Callable[[Block], Tensor],
    of_blocks: Iterable[Block],
    k: int,
    num_candidates: int,
    device: torch.device,
) -> Selection:
    """The ``k`` events that rank highest, best first.

    Selection is hard: no gradient flows through it. Padding can never win, fewer than ``k`` events
    are all chosen, and a candidate without history has no valid row.

    Args:
        rank: (B, C, L) numbers for a block: the higher the better, -inf if not to be chosen.
            Those of padding do not matter.
        of_blocks: those of the batch.
        k: events kept for each candidate.
        num_candidates: S.
        device: of the result.
    """
    # one row more, where the padding of the blocks lands
    rows = torch.zeros(num_candidates + 1, k, dtype=torch.int64, device=device)
    valid = torch.zeros(num_candidates + 1, k, dtype=torch.bool, device=device)
    for block in of_blocks:
        ranks_BCL = rank(block).masked_fill(~block.row_mask[:, None], -torch.inf)
        kept = min(k, block.rows.shape[1])
        best_BCK = highest(ranks_BCL, kept)
        rows[block.candidates, :kept] = _pick(block.rows, best_BCK)
        valid[block.candidates, :kept] = ranks_BCL.gather(2, best_BCK) != -torch.inf
    return Selection(rows[:-1] * valid[:-1], valid[:-1])


def _pick(values_BL: Tensor, index_BCK: Tensor) -> Tensor:
    return values_BL[:, None].expand(-1, index_BCK.shape[1], -1).gather(2, index_BCK)


def most_recent(first_row: Tensor, length: Tensor, k: int) -> Selection:
    """The last ``k`` events of each history, the latest first.

    Args:
        first_row: (S,) where each candidate's history begins.
        length: (S,) events in it.
        k: events kept.
    """
    slot = torch.arange(k, device=length.device)
    valid = slot < length[:, None]
    return Selection(((first_row + length)[:, None] - 1 - slot) * valid, valid)


@torch.no_grad()
def sample_others(
    chosen: Selection, first_row: Tensor, length: Tensor, count: int, draw: Tensor
) -> tuple[Selection, Tensor]:
    """``count`` events of each history that the search did not choose, evenly spread from a random
    start (systematic sampling): each has the same chance and none is drawn twice.

    Args:
        chosen: what the search chose, (S, K).
        first_row: (S,) where each candidate's history begins.
        length: (S,) its number of events n.
        count: M, others wanted; all n - K are taken where there are fewer.
        draw: (S,) uniform in (0, 1).

    Returns:
        The others, (S, M), and the (S, 1) logarithm of how many events each stands for,
        ln((n - K) / M): added to their scores, the softmax estimates the one over all n events.
    """
    rest = length - chosen.valid.sum(1)
    drawn = rest.clamp(max=count)
    slot = torch.arange(count, device=length.device)
    valid = slot < drawn[:, None]
    # nth = floor((u + i) (n - K) / M) for i = 0 ... M - 1
    stands_for = rest.double() / drawn.clamp(min=1)
    nth = (
        ((draw[:, None] + slot) * stands_for[:, None])
        .long()
        .clamp(max=(rest[:, None] - 1).clamp(min=0))
    )
    # the n-th event that was not chosen: step over the chosen ones before it
    past_the_end = torch.iinfo(torch.int64).max
    position = (chosen.rows - first_row[:, None]).masked_fill(~chosen.valid, past_the_end)
    position = ascending(position)
    free_before = position - torch.arange(position.shape[1], device=length.device)
    others = nth + torch.searchsorted(free_before, nth, right=True)
    rows = (first_row[:, None] + others) * valid
    return Selection(rows, valid), stands_for.clamp(min=1).log()[:, None]
