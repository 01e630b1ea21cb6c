"""Cross networks on the fields side by side: Deep & Cross and DCN-V2.

Shapes: S candidates, F fields, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.crossing.parameters import xavier


class CrossNetV1(nn.Module):
    r"""Cross network of Deep & Cross (https://arxiv.org/abs/1708.05123).

    .. math:: x_{l+1} = x_0 (x_l^\top w_l) + b_l + x_l, \qquad \mathrm{logit} = w^\top x_L

    (2 L + 1) F D parameters, 4 L F D FLOPs per candidate.
    """

    def __init__(self, fields: int, width: int, layers: int) -> None:
        super().__init__()
        features = fields * width
        self.weight = xavier(layers, features, 1, fan_in=features, fan_out=1)
        self.bias = nn.Parameter(torch.zeros(layers, features))
        self.head = nn.Linear(features, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        x = x0 = fields.flatten(1)
        for weight, bias in zip(self.weight, self.bias, strict=True):
            x = x0 * (x @ weight) + bias + x
        return self.head(x).squeeze(1)


class CrossNetV2(nn.Module):
    r"""Cross network of DCN-V2 (https://arxiv.org/abs/2008.13535).

    .. math:: x_{l+1} = x_0 ∘ (W_l x_l + b_l) + x_l, \qquad \mathrm{logit} = w^\top x_L

    Of rank r, :math:`W = U V^\top`. Parameters: L (F D)², of rank r 2 L F D r, and L + 1 times F D;
    FLOPs per candidate: twice that.
    """

    def __init__(self, fields: int, width: int, layers: int, rank: int | None = None) -> None:
        """``rank`` None: full matrices."""
        super().__init__()
        features = fields * width
        self.layers = nn.ModuleList(_matrix(features, rank) for _ in range(layers))
        self.head = nn.Linear(features, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        x = x0 = fields.flatten(1)
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return self.head(x).squeeze(1)


def _matrix(features: int, rank: int | None) -> nn.Module:
    if rank is None:
        return nn.Linear(features, features)
    return nn.Sequential(nn.Linear(features, rank, bias=False), nn.Linear(rank, features))
