"""From candidate, interests and context to a logit.

Shapes: S candidates, R representation width, F context fields, D width of a field.
"""

import itertools

import torch
from torch import Tensor, nn

INIT_STD = 0.01
"""Of Linear weights, as in DARE's code."""
PRELU_SLOPE = 0.1


class InterestHead(nn.Module):
    """Batch norm, a multilayer perceptron, two logits; out comes their difference, the log odds.

    Its input is ``[v; h]`` and, target-aware, ``v ⊙ h`` (DARE, section 3.3). The product comes
    after pooling: crossing with the candidate is linear, so it equals pooling the crossed events.
    """

    def __init__(
        self,
        representation_dim: int,
        hidden: tuple[int, ...],
        target_aware: bool = True,
        official_init: bool = False,
        interests: int = 1,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.target_aware = target_aware
        per_interest = 2 if target_aware else 1
        widths = (representation_dim * (1 + interests * per_interest) + context_dim, *hidden)
        layers: list[nn.Module] = [nn.BatchNorm1d(widths[0])]
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.PReLU(init=PRELU_SLOPE)]
        layers.append(nn.Linear(widths[-1], 2))
        self.layers = nn.Sequential(*layers)
        self._initialize(official_init)

    def forward(self, targets: Tensor, *interests: Tensor, context: Tensor | None = None) -> Tensor:
        """(S, R), (S, R) of each interest, (S, F, D) of the context -> (S,) log odds of a click."""
        features = [targets, *interests]
        if self.target_aware:
            features += [targets * interest for interest in interests]
        if context is not None:
            features.append(context.flatten(1))
        click, no_click = self.layers(torch.cat(features, dim=1)).unbind(dim=1)
        return click - no_click

    def _initialize(self, official_init: bool) -> None:
        drawn = (nn.Linear, nn.BatchNorm1d, nn.PReLU) if official_init else (nn.Linear,)
        for layer in self.layers:
            if isinstance(layer, drawn):
                nn.init.normal_(layer.weight, std=INIT_STD)


class CrossingHead(nn.Module):
    """Crosses all there is: each field of the candidate, of each interest and of the context."""

    def __init__(self, crossing: nn.Module, width: int) -> None:
        """``crossing``: (S, fields, D) and (S,) -> (S,), see :mod:`modules.crossing.network`."""
        super().__init__()
        self.layers, self.width = crossing, width

    def forward(
        self,
        targets: Tensor,
        *interests: Tensor,
        context: Tensor | None = None,
        first_order: Tensor,
    ) -> Tensor:
        """(S, R), (S, R) of each interest, (S, F, D) of the context, (S,) linear term -> (S,)."""
        fields = torch.cat([targets, *interests], dim=1).unflatten(1, (-1, self.width))
        if context is not None:
            fields = torch.cat([fields, context], dim=1)
        return self.layers(fields, first_order)
