"""From the interest and the candidate to a logit.

Shapes: S candidates, R representation width.
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
    ) -> None:
        super().__init__()
        self.target_aware = target_aware
        per_interest = 2 if target_aware else 1
        widths = (representation_dim * (1 + interests * per_interest), *hidden)
        layers: list[nn.Module] = [nn.BatchNorm1d(widths[0])]
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.PReLU(init=PRELU_SLOPE)]
        layers.append(nn.Linear(widths[-1], 2))
        self.layers = nn.Sequential(*layers)
        self._initialize(official_init)

    def forward(self, targets: Tensor, *interests: Tensor) -> Tensor:
        """(S, R) and, for each interest, (S, R) -> (S,) log odds of a click."""
        features = [targets, *interests]
        if self.target_aware:
            features += [targets * interest for interest in interests]
        click, no_click = self.layers(torch.cat(features, dim=1)).unbind(dim=1)
        return click - no_click

    def _initialize(self, official_init: bool) -> None:
        drawn = (nn.Linear, nn.BatchNorm1d, nn.PReLU) if official_init else (nn.Linear,)
        for layer in self.layers:
            if isinstance(layer, drawn):
                nn.init.normal_(layer.weight, std=INIT_STD)
