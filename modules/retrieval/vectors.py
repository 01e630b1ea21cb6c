"""Models whose users and items have vectors of their own.

Shapes: U users, I items (row 0 is the unknown item), P places of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.retrieval.config import FactorsConfig
from modules.retrieval.loss import Compared, Pairs

Histories = Iterable[tuple[Tensor, Tensor]]
"""Chunks of users, in order: their latest items (B, T) int64, and which of them are any, bool."""


class Vectors(NamedTuple):
    """A user's score of an item is the dot product of their vectors."""

    users: Tensor
    """(U, D)."""
    items: Tensor
    """(I, D)."""

    def scores(self, users: Tensor) -> Tensor:
        """(B,) users -> (B, I)."""
        return self.users[users] @ self.items.T


class Counts(NamedTuple):
    """A user's score of an item is how often they bought it, plus a share of one for everyone's."""

    first: Tensor
    """(U + 1,) int64: purchases of user u are ``first[u]:first[u + 1]`` of the next two."""
    items: Tensor
    """(E,) int64, none twice for a user."""
    counts: Tensor
    """(E,) float64."""
    shares: Tensor
    """(I,) float64 in [0, 1)."""

    def scores(self, users: Tensor) -> Tensor:
        """(B,) users -> (B, I)."""
        begin, length = self.first[users], self.first[users + 1] - self.first[users]
        row = torch.arange(len(users), device=users.device).repeat_interleave(length)
        place = torch.arange(len(row), device=users.device)
        place += (begin - length.cumsum(0) + length).repeat_interleave(length)
        scores_BI = self.shares.repeat(len(users), 1)
        scores_BI[row, self.items[place]] += self.counts[place]
        return scores_BI


class Popular(nn.Module):
    """The same list for everyone: how often each item was bought in training."""

    def __init__(self, frequency: Tensor, num_users: int) -> None:
        """``frequency``: (I,) purchases."""
        super().__init__()
        self.num_users = num_users
        # counts beyond 2**24 are not whole numbers in float32
        self.register_buffer("frequency", frequency.double())

    def encode(self, histories: Histories) -> Vectors:
        """Vectors of width 1; ``histories`` are not read."""
        return Vectors(self.frequency.new_ones(self.num_users, 1), self.frequency[:, None])


class Frequent(nn.Module):
    """What each user bought most often, then what all bought most often."""

    def __init__(self, first: Tensor, items: Tensor, counts: Tensor, frequency: Tensor) -> None:
        """See :class:`Counts`; ``frequency``: (I,) purchases of all users."""
        super().__init__()
        self.register_buffer("first", first)
        self.register_buffer("items", items)
        self.register_buffer("counts", counts.double())
        self.register_buffer("shares", frequency.double() / (frequency.max() + 1))

    def encode(self, histories: Histories) -> Counts:
        """``histories`` are not read."""
        return Counts(self.first, self.items, self.counts, self.shares)


class MatrixFactorization(nn.Module):
    """A row for each user and each item (BPR-MF, https://arxiv.org/abs/1205.2618, section 5.1).

    Gradients are sparse: a step touches the rows that it looked up.
    """

    def __init__(self, num_users: int, num_items: int, config: FactorsConfig) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, config.width, sparse=True)
        self.items = nn.Embedding(num_items, config.width, sparse=True)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=config.init_std)

    def forward(self, batch: Pairs) -> Compared:
        """Rows of the batch."""
        rows = self.users(batch.users), self.items(batch.positives), self.items(batch.negatives)
        return Compared(*rows, rows=rows)

    @torch.no_grad()
    def encode(self, histories: Histories) -> Vectors:
        """The tables themselves; ``histories`` are not read."""
        return Vectors(self.users.weight, self.items.weight)
