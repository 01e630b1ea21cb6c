r"""What a retrieval model is trained on: batches, and losses that set bought items above others.

Shapes: P places where an item is to be predicted, N negatives, B histories, T events (padded, the
newest last), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["bpr", "sampled_softmax"]


class _Movable:
    def to(self, device: torch.device) -> Self:
        """The same batch on ``device``."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Pairs(_Movable):
    """Purchases without order."""

    users: Tensor
    """(P,) int64."""
    positives: Tensor
    """(P,) int64, items that they bought."""
    negatives: Tensor
    """(P,) int64 for BPR: one for each place; (N,) for the sampled softmax: for all places."""


@dataclass(frozen=True)
class Windows(_Movable):
    """Parts of histories, and what was bought later than each of their events."""

    events: Tensor
    """(B, T) int64 items in order of time."""
    valid: Tensor
    """(B, T) bool: True where there is an event; padding stands before them."""
    targets: Tensor
    """(B, T) int64: an item that was bought later, 0 where there is none."""
    negatives: Tensor
    """(P,) int64 or (N,), as those of Pairs, with P targets above 0."""

    @property
    def positives(self) -> Tensor:
        """(P,) int64."""
        return self.targets[self.targets > 0]


class Compared(NamedTuple):
    """What a loss needs of a batch."""

    queries: Tensor
    """(P, D) vectors of the users."""
    positives: Tensor
    """(P, D) vectors of what they bought."""
    negatives: Tensor
    """(P, D) or (N, D), as the batch's negatives."""
    rows: tuple[Tensor, ...]
    """Rows of tables that the batch looked up, for the L2 penalty."""


def bpr(compared: Compared) -> Tensor:
    r"""Bayesian personalised ranking (https://arxiv.org/abs/1205.2618, BPR-Opt).

    .. math:: -\frac{1}{P} \sum_p \ln \sigma(q_p \cdot v_p^+ - q_p \cdot v_p^-)
    """
    queries_PD, positives_PD, negatives_PD, _ = compared
    return -F.logsigmoid((queries_PD * (positives_PD - negatives_PD)).sum(1)).mean()


def sampled_softmax(compared: Compared, positives: Tensor, negatives: Tensor) -> Tensor:
    r"""Cross-entropy against N uniform draws (Jean et al. 2015, https://arxiv.org/abs/1412.2007).

    .. math:: -\frac{1}{P} \sum_p \ln \frac{\exp(q_p \cdot v_p^+)}
        {\exp(q_p \cdot v_p^+) + \sum_n \exp(q_p \cdot v_n^-)}

    A draw that is the very item of a place is left out there. Uniform draws need no correction:
    it would be the same number for all of them.

    Args:
        compared: of the batch.
        positives: (P,) ids.
        negatives: (N,) ids.
    """
    positive_P1 = (compared.queries * compared.positives).sum(1, keepdim=True)
    negative_PN = compared.queries @ compared.negatives.T
    negative_PN = negative_PN.masked_fill(positives[:, None] == negatives, -torch.inf)
    return (torch.logsumexp(torch.cat([positive_P1, negative_PN], 1), 1) - positive_P1[:, 0]).mean()


def half_squares(compared: Compared) -> Tensor:
    """Half the summed squares of the rows that a batch looked up, per place: what l2 weighs."""
    return sum(rows.square().sum() for rows in compared.rows) / (2 * len(compared.queries))
