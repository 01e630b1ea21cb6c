"""Products of two fields: the factorization machines.

Shapes: S candidates, F fields, D width, P = F (F - 1) / 2 pairs i < j.
"""

import torch
from torch import Tensor, nn

from modules.crossing.deep import Perceptron
from modules.crossing.parameters import num_pairs, pair_fields, strict_upper


def pair_sum(fields: Tensor) -> Tensor:
    r""":math:`\sum_{i<j} v_i ∘ v_j` in linear time: half of the squared sum less the squares.

    (S, F, D) -> (S, D).
    """
    return (fields.sum(1).square() - fields.square().sum(1)) / 2


def pair_products(fields: Tensor) -> Tensor:
    """(S, F, D) -> (S, P, D) elementwise products of every pair."""
    first, second = pair_fields(fields.shape[1], fields.device)
    return fields[:, first] * fields[:, second]


class FM(nn.Module):
    r"""Factorization machine (Rendle, ICDM 2010).

    .. math:: \textstyle\sum_{i<j} \langle v_i, v_j \rangle

    No parameters; 3 F D FLOPs per candidate.
    """

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        return pair_sum(fields).sum(1)


class FwFM(nn.Module):
    r"""Field-weighted factorization machine (https://arxiv.org/abs/1806.03514).

    .. math:: \textstyle\sum_{i<j} r_{ij} \langle v_i, v_j \rangle

    Starts as FM. P parameters; 2 F² D FLOPs per candidate.
    """

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_pairs(fields)))

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        return (fields * (strict_upper(self.weight, fields.shape[1]) @ fields)).sum(dim=(1, 2))


class FvFM(nn.Module):
    r"""Field-vectorized factorization machine: FmFM with diagonal matrices
    (https://arxiv.org/abs/2102.12994).

    .. math:: \textstyle\sum_{i<j} \sum_d r_{ijd}\, v_{id} v_{jd}

    Starts as FM. P D parameters; 2 F² D FLOPs per candidate.
    """

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_pairs(fields), width))

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        x_DSF = fields.permute(2, 0, 1).contiguous()
        weight_DFF = strict_upper(self.weight, fields.shape[1]).permute(2, 0, 1)
        return (torch.bmm(x_DSF, weight_DFF) * x_DSF).sum(dim=(0, 2))


class FmFM(nn.Module):
    r"""Field-matrixed factorization machine (https://arxiv.org/abs/2102.12994).

    .. math:: \textstyle\sum_{i<j} v_i^\top M_{ij} v_j

    Starts as FM. One product with the (F D)² matrix of all blocks, zero on and below the diagonal,
    beats P small ones. P D² parameters; 2 (F D)² FLOPs per candidate.
    """

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(num_pairs(fields), 1, 1))

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        x = fields.flatten(1)
        blocks_FFDD = strict_upper(self.weight, fields.shape[1])
        matrix = blocks_FFDD.permute(0, 2, 1, 3).reshape(x.shape[1], x.shape[1])
        return ((x @ matrix) * x).sum(1)


class NFM(nn.Module):
    r"""Neural factorization machine (https://arxiv.org/abs/1708.05027).

    .. math:: h^\top \mathrm{MLP}(\textstyle\sum_{i<j} v_i ∘ v_j)

    Its perceptron sees D numbers, not F D: the cheapest deep network here.
    """

    def __init__(
        self, width: int, hidden: tuple[int, ...], dropout: float = 0.0, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.perceptron = Perceptron(width, hidden, dropout, batch_norm)
        self.head = nn.Linear(self.perceptron.width_out, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        return self.head(self.perceptron(pair_sum(fields))).squeeze(1)


class AFM(nn.Module):
    r"""Attentional factorization machine (https://arxiv.org/abs/1708.04617).

    .. math::
        e_{ij} = v_i ∘ v_j, \quad a = \mathrm{softmax}_{ij}(h^\top \mathrm{ReLU}(W e_{ij} + b)),
        \quad p^\top \textstyle\sum_{i<j} a_{ij} e_{ij}

    T is the attention's width: T (D + 2) + D parameters; 2 P T D FLOPs and P (D + T) floats per
    candidate.
    """

    def __init__(self, width: int, attention_width: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, attention_width)
        self.score = nn.Linear(attention_width, 1, bias=False)
        self.head = nn.Linear(width, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        products_SPD = pair_products(fields)
        weights_SP1 = self.score(self.attention(products_SPD).relu()).softmax(dim=1)
        return self.head((weights_SP1 * products_SPD).sum(1)).squeeze(1)
