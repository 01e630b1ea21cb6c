"""Bilinear products of fields, weighted by squeeze and excitation: FiBiNET.

Shapes: S candidates, F fields, D width, P = F (F - 1) / 2 pairs i < j.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from modules.crossing.deep import Perceptron
from modules.crossing.parameters import num_pairs, pair_fields, xavier

Bilinear = Literal["all", "each", "interaction"]


class FiBiNET(nn.Module):
    r"""Feature importance and bilinear interaction (https://arxiv.org/abs/1905.09433).

    .. math::
        a = \mathrm{ReLU}(W_2 \mathrm{ReLU}(W_1 \mathrm{mean}_d v)), \quad
        p_{ij} = (W v_i) ∘ v_j, \quad
        w^\top \mathrm{MLP}([p(v); p'(a v)])

    with one W for all pairs, for each left field or for each pair; p and p' have maps of their own.
    Parameters: 2 F² / ``reduction`` + 2 P D² (for each pair) + 2 P D h_1 + ...: the first layer of
    the perceptron is by far the largest. FLOPs per candidate: twice the parameters.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        hidden: tuple[int, ...],
        *,
        bilinear: Bilinear = "interaction",
        reduction: int = 3,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        squeezed = max(1, fields // reduction)
        self.excitation = nn.Sequential(
            nn.Linear(fields, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, fields, bias=False),
            nn.ReLU(),
        )
        self.products = BilinearProducts(fields, width, bilinear)
        self.weighted_products = BilinearProducts(fields, width, bilinear)
        products = 2 * num_pairs(fields) * width
        self.perceptron = Perceptron(products, hidden, dropout, batch_norm)
        self.head = nn.Linear(self.perceptron.width_out, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        weighted = fields * self.excitation(fields.mean(2)).unsqueeze(2)
        products = torch.cat([self.products(fields), self.weighted_products(weighted)], dim=1)
        return self.head(self.perceptron(products.flatten(1))).squeeze(1)


class BilinearProducts(nn.Module):
    """:math:`(W v_i) ∘ v_j` of every pair."""

    def __init__(self, fields: int, width: int, kind: Bilinear) -> None:
        super().__init__()
        self.kind = kind
        # the last field is left of none
        matrices = {"all": 1, "each": fields - 1, "interaction": num_pairs(fields)}[kind]
        self.weight = xavier(matrices, width, width, fan_in=width, fan_out=width)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S, P, D)."""
        first, second = pair_fields(fields.shape[1], fields.device)
        if self.kind == "interaction":
            left = torch.einsum("spd,ped->spe", fields[:, first], self.weight)
        else:  # a map per field at most: apply it before the field is repeated
            weight = self.weight.expand(fields.shape[1] - 1, -1, -1)
            left = torch.einsum("sfd,fed->sfe", fields[:, :-1], weight)[:, first]
        return left * fields[:, second]
