"""General search unit (GSU): which K events of a history matter to a candidate.

Shapes: S candidates, N events of all histories together, K kept, M others, A attention width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from modules.jagged import Block


class Selection(NamedTuple):
    """Events chosen for each candidate."""

    rows: Tensor
    """(S, K) int64 rows of the jagged history; 0 where not ``valid``."""
    valid: Tensor
    """(S, K) bool: False beyond the end of a short history."""


@torch.no_grad()
def top_k(queries: Tensor, keys: Tensor, blocks: Iterable[Block], k: int) -> Selection:
    """Exact search: the ``k`` events with the highest dot product, in order of their score.

    Selection is hard: no gradient flows through it. Padding can never win, fewer than ``k`` events
    are all chosen, and a candidate without history has no valid row.

    Args:
        queries: (S, A).
        keys: (N, A).
        blocks: of the batch.
        k: events kept for each candidate.
    """
    num_candidates = queries.shape[0]
    padded_queries = torch.cat([queries, queries.new_zeros(1, queries.shape[1])])
    # one row more, where the padding of the blocks lands
    rows = torch.zeros(num_candidates + 1, k, dtype=torch.int64, device=queries.device)
    valid = torch.zeros(num_candidates + 1, k, dtype=torch.bool, device=queries.device)
    for block in blocks:
        scores_BCL = padded_queries[block.candidates] @ keys[block.rows].mT
        scores_BCL.masked_fill_(~block.row_mask[:, None], -torch.inf)
        kept = min(k, block.rows.shape[1])
        best_BCK = scores_BCL.topk(kept, dim=-1).indices
        rows[block.candidates, :kept] = _pick(block.rows, best_BCK)
        valid[block.candidates, :kept] = _pick(block.row_mask, best_BCK)
    return Selection(rows[:-1] * valid[:-1], valid[:-1])


def _pick(values_BL: Tensor, index_BCK: Tensor) -> Tensor:
    return values_BL[:, None].expand(-1, index_BCK.shape[1], -1).gather(2, index_BCK)


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
    position = position.sort(dim=1).values
    free_before = position - torch.arange(position.shape[1], device=length.device)
    others = nth + torch.searchsorted(free_before, nth, right=True)
    rows = (first_row[:, None] + others) * valid
    return Selection(rows, valid), stands_for.clamp(min=1).log()[:, None]
