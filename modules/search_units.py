"""General search units (GSU): which K events of a history matter to a candidate.

Shapes: S candidates, N events of all histories together, K kept, A attention width; in a block
B requests, L events, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from modules.attention import sum_all
from modules.jagged import Block
from modules.kernels.choice import fused_search, searches_fused
from modules.random import hyperplanes
from modules.score import MLPScore, Score, dot
from modules.search import Histories, Selection, most_recent, top_k
from modules.tables import Keys
from modules.whole_tables import WholeKeys

Attend = Callable[[], tuple[Keys, Tensor]]
"""Gives the attention rows of events as asked for, and the (S, A) ones of the candidates, if a
search needs them."""

T = TypeVar("T")
CATEGORY = "category"


class Search(Protocol):
    """What every search unit does."""

    def __call__(
        self, histories: Histories, attend: Attend, score: Score | MLPScore, k: int
    ) -> Selection:
        """Keeps at most ``k`` events of each history. No gradient flows through it."""
        ...


class ExactSearch(nn.Module):
    """By the score that attention uses too (TWIN, https://arxiv.org/abs/2302.02352; DARE)."""

    @torch.no_grad()
    def forward(
        self, histories: Histories, attend: Attend, score: Score | MLPScore, k: int
    ) -> Selection:
        """See :class:`Search`."""
        keys, queries = attend()
        queries = score.query(queries)
        if searches_fused(keys, score, k):
            return fused_search(keys, queries, score, histories, k)
        if isinstance(keys, WholeKeys) and isinstance(score, Score):
            return search_by_score(queries, keys.by_field, score.of_fields, histories, k)
        return search_by_score(queries, lambda rows: score.key(keys(rows)), score, histories, k)


class RecentSearch(nn.Module):
    """The last events, whatever they are: what a model without a search sees."""

    @torch.no_grad()
    def forward(
        self, histories: Histories, attend: Attend, score: Score | MLPScore, k: int
    ) -> Selection:
        """See :class:`Search`."""
        return most_recent(histories.first_row, histories.length, k)


class CategorySearch(nn.Module):
    """The last events of the candidate's category (SIM hard, https://arxiv.org/abs/2006.05639).

    ``fill``: fewer than K of them are filled up with the last events of other categories, as in
    DARE's "TWIN (hard)".
    """

    def __init__(self, *, fill: bool) -> None:
        super().__init__()
        self.fill = fill

    @torch.no_grad()
    def forward(
        self, histories: Histories, attend: Attend, score: Score | MLPScore, k: int
    ) -> Selection:
        """See :class:`Search`."""
        events, candidates = histories.events[CATEGORY], histories.candidates[CATEGORY]
        padded = torch.cat([candidates, candidates.new_zeros(1)])

        def rank(block: Block) -> Tensor:
            hit_BCL = padded[block.candidates][:, :, None] == events[block.rows][:, None]
            position_L = torch.arange(block.rows.shape[1], device=events.device).float()
            if self.fill:  # a hit outranks the latest event that is none
                return hit_BCL * len(position_L) + position_L
            return torch.where(hit_BCL, position_L, -torch.inf)

        return top_k(rank, histories.blocks, k, len(candidates), events.device)


class SimHashSearch(nn.Module):
    r"""By agreeing bits of a random sign hash (ETA, https://arxiv.org/abs/2108.04468).

    One bit of two vectors agrees with probability :math:`1 - \theta / \pi`; the vectors are those
    whose dot product is the score. Of equal distances the most recent event wins.
    """

    def __init__(self, width: int, bits: int, *, semantic_only: bool = False) -> None:
        """``semantic_only`` hashes the item and not its place in time: codes can be kept."""
        super().__init__()
        self.semantic_only = semantic_only
        self.register_buffer("planes", hyperplanes(width, bits))

    @torch.no_grad()
    def forward(self, histories: Histories, attend: Attend, score: Score, k: int) -> Selection:
        """See :class:`Search`."""
        keys, queries = attend()
        queries = self._signs(queries, score)
        padded = torch.cat([queries, queries.new_zeros(1, queries.shape[1])])

        def rank(block: Block) -> Tensor:
            # agreeing minus differing bits: -2 Hamming distance + constant
            signs_BLH = self._signs(keys(block.rows), score)
            with torch.autocast(queries.device.type, enabled=False):
                agreement_BCL = padded[block.candidates] @ signs_BLH.mT
            length = block.rows.shape[1]
            # float32 counts to 2^24 only
            return agreement_BCL.double() * length + torch.arange(length, device=queries.device)

        return top_k(rank, histories.blocks, k, len(queries), queries.device)

    def _signs(self, rows: Tensor, score: Score) -> Tensor:
        """(n, A) -> (n, bits) of -1 and 1: their dot product counts bits by a matrix product."""
        hashed = score.hashable(rows, semantic_only=self.semantic_only) @ self.planes.to(rows)
        return torch.where(hashed > 0, 1.0, -1.0)


class SoftSearch(nn.Module):
    r"""By a dot product of its own, :math:`\langle W_q q, W_k k \rangle` (SIM soft,
    https://arxiv.org/abs/2006.05639, section 3.1).

    The two maps learn from the auxiliary task, through :meth:`pool`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_map = nn.Linear(width, width, bias=False)
        self.key_map = nn.Linear(width, width, bias=False)
        for linear in (self.query_map, self.key_map):
            nn.init.eye_(linear.weight)

    @torch.no_grad()
    def forward(
        self, histories: Histories, attend: Attend, score: Score | MLPScore, k: int
    ) -> Selection:
        """See :class:`Search`."""
        keys, queries = attend()
        return search_by_score(
            self.query_map(queries), lambda rows: self.key_map(keys(rows)), dot, histories, k
        )

    def pool(self, queries: Tensor, keys: Tensor, values: Tensor, blocks: list[Block]) -> Tensor:
        """(S, R) sum of the values of the whole history, weighted by the search's scores."""
        return sum_all(self.query_map(queries), self.key_map(keys), values, blocks)


def search_by_score(
    queries: Tensor,
    keys: Callable[[Tensor], T],
    score: Callable[[Tensor, T], Tensor],
    histories: Histories,
    k: int,
) -> Selection:
    """Exact search: by ``score`` of the (S, A) queries and the keys of the events."""
    padded = torch.cat([queries, queries.new_zeros(1, queries.shape[1])])
    return top_k(
        lambda block: score(padded[block.candidates], keys(block.rows)),
        histories.blocks,
        k,
        len(queries),
        queries.device,
    )
