"""Crossing within one embedding dimension: CIN with its filters shared over the dimensions, SECN
with filters of each dimension's own, and all that lies between SECN and DCN-V2.

A slice is what never mixes with another: a dimension d, a group of g dimensions, or, with shared
filters, any dimension of any candidate. A layer maps the slices of the last layer, and those of the
input, to H maps of each slice.

Shapes: S candidates, F fields, D width; N slices of R rows: N = D, R = S; shared N = 1, R = D S;
in groups N = D / g, R = S. I maps in, J of the input, H out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.crossing.parameters import xavier
from modules.crossing.slice_cross import CrossLayers

Form = Literal["filter", "cross"]
Pool = Literal["width", "maps"]
PoolLayers = Literal["concat", "sum"]

TILE_FLOATS = 4_194_304
"""Of a half-contracted filter (N, rows, min(I, J), H): larger ones are worked on a few rows at a
time."""


class Separation(nn.Module):
    r"""Separated embedding cross network (SECN, https://arxiv.org/abs/2410.15026).

    .. math::
        X^l_{hd} &= \textstyle\sum_{ij} W^l_{dhij}\, X^{l-1}_{id}\, X^0_{jd} && \text{filter} \\
        X^l_d &= X^0_d \circ (W^l_d X^{l-1}_d + b^l_d) + X^{l-1}_d && \text{cross} \\
        \mathrm{logit} &= w \cdot \mathrm{concat}_l \textstyle\sum_d X^l_{:d}

    ``filter`` of rank r takes :math:`W_{dhij} = \sum_r U_{dhri} V_{dhrj}`. With ``shared`` filters
    it is the compressed interaction network (CIN, xDeepFM, https://arxiv.org/abs/1803.05170).
    ``cross`` in groups of g dimensions is DCN-V2 (https://arxiv.org/abs/2008.13535) whose matrix is
    block-diagonal with blocks of g F: coordinate ``k F + i`` of block n is dimension ``n g + k`` of
    field i, so that g = D is DCN-V2's full matrix with coordinates ``d F + i``.

    There is no activation: layer l is a polynomial of degree l + 1 in the input.

    Parameters, L layers with H = F: filter L D F³, rank r 2 L D r F², cross L D g F²; shared 1/D of
    it. FLOPs per candidate: twice as many as there are separate parameters, shared or not.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        layers: int,
        *,
        form: Form = "filter",
        shared: bool = False,
        maps: int | None = None,
        rank: int | None = None,
        group: int = 1,
        residual: bool = False,
        layer_bias: bool = False,
        pool: Pool = "width",
        pool_layers: PoolLayers = "concat",
    ) -> None:
        """``maps`` None: as many as fields. ``rank`` None: the full filter."""
        super().__init__()
        self.shared, self.group = shared, group
        self.rows = width if shared else 1  # of a candidate in each slice
        self.pool, self.pool_layers = pool, pool_layers
        slices, maps = 1 if shared else width // group, maps or fields
        kept: dict[str, bool] = {"residual": residual, "bias": layer_bias}
        if form == "cross":
            self.layers: nn.ModuleList = CrossLayers(layers, slices, group * fields, **kept)
        else:
            self.layers = Filters()
            for maps_in in (fields, *[maps] * (layers - 1)):
                sizes = (slices, maps_in, fields, maps)
                if rank is None:
                    self.layers.append(FullFilter(*sizes, **kept))
                else:
                    self.layers.append(LowRankFilter(*sizes, rank, **kept))
        of_each_layer = maps if pool == "width" else width
        pooled = of_each_layer * (layers if pool_layers == "concat" else 1)
        self.head = nn.Linear(pooled, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        over_width = self.pool == "width"
        maps = self.layers(self._slice(fields), summed=over_width)
        pool = self._pool_width if over_width else self._pool_maps
        pooled = [pool(of_layer, len(fields)) for of_layer in maps]
        if self.pool_layers == "concat":
            return self.head(torch.cat(pooled, dim=1)).squeeze(1)
        return self.head(torch.stack(pooled).sum(0)).squeeze(1)

    def maps(self, fields: Tensor) -> list[Tensor]:
        """(S, F, D) -> of each layer the (N, R, g H) maps, before pooling."""
        return self.layers(self._slice(fields))

    def _slice(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (N, R, g F), a slice after the other; strided where no copy is needed."""
        if self.shared:
            return fields.permute(2, 0, 1).reshape(1, -1, fields.shape[1])
        slices = fields.unflatten(2, (-1, self.group))
        return slices.permute(2, 0, 3, 1).flatten(2)

    def _pool_width(self, maps: Tensor, candidates: int) -> Tensor:
        """(R, g H), summed over slices -> (S, H), summed over dimensions."""
        features = maps.shape[1] // self.group
        return maps.view(self.rows, candidates, self.group, features).sum((0, 2))

    def _pool_maps(self, maps: Tensor, candidates: int) -> Tensor:
        """(N, R, g H) -> (S, D), summed over maps."""
        slices, _, features = maps.shape
        by_map = maps.view(slices, self.rows, candidates, self.group, features // self.group)
        return by_map.sum(4).permute(2, 0, 1, 3).flatten(1)


class Filters(nn.ModuleList):
    """Each layer filters the maps of the last and the input."""

    def forward(self, slices: Tensor, *, summed: bool = False) -> list[Tensor]:
        """(N, R, F) -> of each layer the (N, R, H) maps, or their (R, H) sums over the slices."""
        x0 = x = slices.contiguous()  # so that a layer is one batched product
        maps = []
        for layer in self:
            x = layer(x, x0)
            maps.append(x.sum(0) if summed else x)
        return maps


class FullFilter(nn.Module):
    """Every pair of a map and a field has a weight, for each slice and map of its own.

    The weight of (h, i, j) in slice n is ``weight[n, j, i, h]``.
    """

    def __init__(
        self, slices: int, maps_in: int, fields: int, maps: int, residual: bool, bias: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.weight = xavier(slices, fields, maps_in, maps, fan_in=fields * maps_in, fan_out=maps)
        self.bias = nn.Parameter(torch.zeros(slices, 1, maps)) if bias else None

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        """(N, R, I) and (N, R, J) -> (N, R, H)."""
        return _add(bilinear(x, x0, self.weight), self.bias, x if self.residual else None)


class LowRankFilter(nn.Module):
    """A filter that is the sum of r outer products, which it never writes out.

    The weight of (h, i, j) in slice n is the sum over r of ``u[n, i, h, r] * v[n, j, h, r]``.
    """

    def __init__(
        self,
        slices: int,
        maps_in: int,
        fields: int,
        maps: int,
        rank: int,
        residual: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.u = nn.Parameter(torch.randn(slices, maps_in, maps, rank))
        self.v = nn.Parameter(torch.randn(slices, fields, maps, rank))
        # so that the sum of r products starts with the variance of the full filter
        std = (2 / (fields * maps_in + maps)) ** 0.25 / rank**0.25
        with torch.no_grad():
            self.u.mul_(std)
            self.v.mul_(std)
        self.bias = nn.Parameter(torch.zeros(slices, 1, maps)) if bias else None

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        """(N, R, I) and (N, R, J) -> (N, R, H)."""
        products = (x @ self.u.flatten(2)) * (x0 @ self.v.flatten(2))
        rank = self.u.shape[3]
        # of one, sum is a slow copy
        crossed = products.unflatten(2, (-1, rank)).sum(3) if rank > 1 else products
        return _add(crossed, self.bias, x if self.residual else None)


def bilinear(x: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    r""":math:`\sum_{ij} W_{njih} x_{nri} x^0_{nrj}`, never storing the products of x and x0.

    Contracting the longer of the two first leaves min(I, J) H floats of each row. Where they are
    many, a few rows are worked on at a time, and backward computes them again instead of keeping
    them.

    Args:
        x: (N, R, I).
        x0: (N, R, J).
        weight: (N, J, I, H).

    Returns:
        (N, R, H).
    """
    if x.shape[2] > x0.shape[2]:
        x, x0, weight = x0, x, weight.transpose(1, 2)
    slices, _, shorter, maps = weight.shape
    tile = max(1, TILE_FLOATS // (slices * shorter * maps))
    if x.shape[1] <= tile:
        return _contract(x, x0, weight)
    tiles = [
        checkpoint(_contract, *rows, weight, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(x.split(tile, dim=1), x0.split(tile, dim=1), strict=True)
    ]
    return torch.cat(tiles, dim=1)


def _contract(x: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    half = (x0 @ weight.flatten(2)).unflatten(2, weight.shape[2:])
    return torch.einsum("nri,nrih->nrh", x, half)


def _add(crossed: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if bias is not None:
        crossed = crossed + bias
    return crossed if residual is None else crossed + residual
