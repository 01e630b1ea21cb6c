"""The training objective: main, auxiliary and L2 terms, reported apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.head import InterestHead
from modules.ranker import RankerOutput
from modules.score import MLPScore
from modules.search_units import SoftSearch
from modules.tables import Projections

REGULARIZED = (InterestHead, Projections, MLPScore, SoftSearch)


class Losses(NamedTuple):
    """Terms of the objective, each already weighted."""

    main: Tensor
    """Cross-entropy of the head, mean over candidates."""
    auxiliary: Tensor
    """Cross-entropy of the auxiliary head; 0 where there is none."""
    l2: Tensor

    def total(self) -> Tensor:
        """What is differentiated."""
        return self.main + self.auxiliary + self.l2


def ranking_losses(
    output: RankerOutput,
    labels: Tensor,
    regularized: Sequence[Tensor],
    *,
    num_candidates: float,
    auxiliary_weight: float = 1.0,
    l2: float = 1e-6,
) -> Losses:
    r""":math:`L = CE + w\, CE_{aux} + \lambda \sum \lVert\theta\rVert^2` (DARE's code).

    Args:
        output: of the ranker, S candidates.
        labels: (S,) 0 or 1.
        regularized: parameters that are kept small, see :func:`regularized_parameters`.
        num_candidates: what sums are divided by. S, or the global batch's candidates divided by
            the number of ranks, whose average is then the mean over the global batch.
        auxiliary_weight: w.
        l2: lambda.
    """

    def cross_entropy(logits: Tensor) -> Tensor:
        summed = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return summed / num_candidates

    zero = torch.zeros((), device=labels.device)
    return Losses(
        main=cross_entropy(output.logits),
        auxiliary=zero
        if output.auxiliary_logits is None
        else auxiliary_weight * cross_entropy(output.auxiliary_logits),
        l2=l2 * l2_penalty(regularized) if l2 else zero,
    )


def regularized_parameters(module: nn.Module) -> list[Tensor]:
    """Those of heads, projections, SIM soft's maps and DIN's network: biases left out, batch-norm
    gains and PReLU slopes included. Tables are not regularized.
    """
    return [
        parameter
        for child in module.modules()
        if isinstance(child, REGULARIZED)
        for name, parameter in child.named_parameters()
        if not name.endswith("bias")
    ]


def l2_penalty(parameters: Sequence[Tensor]) -> Tensor:
    """Sum of squares."""
    return sum((p.square().sum() for p in parameters), start=torch.zeros(()))
