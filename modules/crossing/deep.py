"""Multilayer perceptrons on the fields side by side: one that adds a logit, and FinalMLP's two.

Shapes: S candidates, F fields, D width.
"""

import itertools

import torch
from torch import Tensor, nn

from modules.crossing.parameters import xavier

CONTEXT_STD = 0.01
"""Start of the vector that opens FinalMLP's gate where no field does; zeros would leave the gate's
first layer without gradient."""


class Perceptron(nn.Sequential):
    """Linear layers, each with batch norm (if wanted), ReLU and dropout. None is the identity."""

    def __init__(
        self, width_in: int, hidden: tuple[int, ...], dropout: float = 0.0, batch_norm: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise((width_in, *hidden)):
            # batch norm takes a bias away again
            layers.append(nn.Linear(i, o, bias=not batch_norm))
            layers += [nn.BatchNorm1d(o)] if batch_norm else []
            layers.append(nn.ReLU())
            layers += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*layers)
        self.width_out = (width_in, *hidden)[-1]


class Deep(nn.Module):
    r"""The deep part of DeepFM, Wide & Deep, DCN, xDeepFM, ...: :math:`w^\top \mathrm{MLP}(x)`.

    Parameters for hidden widths h_1, h_2, ...: F D h_1 + h_1 h_2 + ... and biases; FLOPs per
    candidate: twice that.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        hidden: tuple[int, ...],
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.perceptron = Perceptron(fields * width, hidden, dropout, batch_norm)
        self.head = nn.Linear(self.perceptron.width_out, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        return self.head(self.perceptron(fields.flatten(1))).squeeze(1)


class FinalMLP(nn.Module):
    r"""Two perceptrons, each with a gate on its input, and their products
    (https://arxiv.org/abs/2304.00902).

    .. math::
        x_s = \mathrm{MLP}_s(2 σ(\mathrm{gate}_s) ∘ v), \quad
        w_1^\top x_1 + w_2^\top x_2 + \textstyle\sum_k x_{1k}^\top W_k x_{2k}

    with x_1 and x_2 cut into ``heads`` pieces. A gate is a perceptron of the rows of some fields,
    or of a learned vector where there are none. The published code reads tables of their own for
    the gates; here they read the same rows. Parameters: two deep parts, two gates and a b / heads
    for last widths a and b.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        hidden: tuple[tuple[int, ...], tuple[int, ...]],
        *,
        heads: int = 1,
        gate_hidden: tuple[int, ...] = (),
        gate_fields: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        """``gate_hidden`` (): no gates."""
        super().__init__()
        streams = [Perceptron(fields * width, h, dropout, batch_norm) for h in hidden]
        self.streams = nn.ModuleList(streams)
        gates = [FieldGate(fields, width, gate_hidden, read) for read in gate_fields]
        self.gates = nn.ModuleList(gates if gate_hidden else ())
        a, b = (stream.width_out for stream in streams)
        self.first, self.second = nn.Linear(a, 1, bias=False), nn.Linear(b, 1, bias=False)
        self.fusion = xavier(heads, a // heads, b // heads, fan_in=a * b // heads, fan_out=1)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        inputs = [gate(fields) for gate in self.gates] or [fields.flatten(1)] * 2
        x, y = (stream(of_stream) for stream, of_stream in zip(self.streams, inputs, strict=True))
        heads = self.fusion.shape[0]
        x_SHA, y_SHB = x.unflatten(1, (heads, -1)), y.unflatten(1, (heads, -1))
        products = torch.einsum("sha,hab,shb->s", x_SHA, self.fusion, y_SHB)
        return (self.first(x) + self.second(y)).squeeze(1) + products


class FieldGate(nn.Module):
    """Scales every number of every field by 0 ... 2, as the rows of some fields say."""

    def __init__(
        self, fields: int, width: int, hidden: tuple[int, ...], read: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.read = read
        if not read:
            self.context = nn.Parameter(torch.randn(1, width) * CONTEXT_STD)
        self.perceptron = Perceptron(max(1, len(read)) * width, hidden)
        self.last = nn.Linear(self.perceptron.width_out, fields * width)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S, F D)."""
        read = [fields[:, i] for i in self.read] or [self.context]
        context = torch.cat(read, dim=1)
        return fields.flatten(1) * (2 * self.last(self.perceptron(context)).sigmoid())
