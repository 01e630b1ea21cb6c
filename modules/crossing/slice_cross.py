"""DCN-V2's cross layers within slices, all layers of a slice in one go.

A layer at a time takes 1.6 times as long as its matrix products alone: large maps are written, read
once or twice, and have left the caches in between. So a few slices at a time, as many as caches
hold, run through all layers, and backward through all of them again. Kept for that are the input
and the L mixed maps :math:`W X + b`; all else is computed from them, without a matrix product.

Shapes: N slices of R rows; C = g F coordinates of a slice, P of a padded one: C, then one that is
always 1, whose weights are the bias, then zeros up to a multiple of ``ALIGNED``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import pad

from modules.crossing.parameters import xavier

ALIGNED = 4
"""Coordinates of a padded slice are a multiple: products of 39 take a quarter longer than of 40,
those of weight gradients nearly half."""
CACHE_FLOATS = 262_144
"""Of the (n, R, P) slices that run through all layers at a time: a megabyte."""


class CrossLayers(nn.ModuleList):
    r""":math:`X^l = X^0 ∘ (W^l X^{l-1} + b^l) + X^{l-1}` within each slice; can be backpropagated
    through once.
    """

    def __init__(
        self, layers: int, slices: int, coordinates: int, residual: bool, bias: bool
    ) -> None:
        super().__init__(CrossLayer(slices, coordinates, bias) for _ in range(layers))
        self.residual = residual

    def forward(self, slices: Tensor, *, summed: bool = False) -> list[Tensor]:
        """(N, R, C) -> of each layer the (N, R, C) maps, or their (R, C) sums over the slices."""
        weights = [layer.padded_weight(keep_one=not self.residual) for layer in self]
        return list(_CrossLayers.apply(slices, self.residual, summed, *weights))


class CrossLayer(nn.Module):
    """A matrix and a bias for each slice."""

    def __init__(self, slices: int, coordinates: int, bias: bool) -> None:
        super().__init__()
        sizes = (slices, coordinates, coordinates)
        self.weight = xavier(*sizes, fan_in=coordinates, fan_out=coordinates)
        self.bias = nn.Parameter(torch.zeros(slices, 1, coordinates)) if bias else None

    def padded_weight(self, keep_one: bool) -> Tensor:
        """(N, P, P), which maps the one to itself or, where a residual adds it, to zero."""
        slices, coordinates, _ = self.weight.shape
        bias = self.weight.new_zeros(slices, 1, coordinates) if self.bias is None else self.bias
        one = bias.new_zeros(slices, 1, coordinates + 1)
        one[..., -1] = keep_one
        affine = torch.cat([torch.cat([self.weight, bias.mT], dim=2), one], dim=1)
        missing = -(coordinates + 1) % ALIGNED
        return pad(affine, (0, missing, 0, missing))


class _CrossLayers(Function):
    @staticmethod
    def forward(
        ctx: Any, slices: Tensor, residual: bool, summed: bool, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        x0 = _padded(slices, weights[0])
        mixed = [torch.empty_like(x0) for _ in weights]
        results = [x0.new_zeros(x0.shape[summed:]) for _ in weights]
        for tile in _tiles(x0):
            x = x0[tile]
            for weight, mix, result in zip(weights, mixed, results, strict=True):
                torch.bmm(x, weight[tile].mT, out=mix[tile])
                x = _cross(x, x0[tile], mix[tile], residual)
                if summed:
                    result += x.sum(0) if len(x) > 1 else x[0]  # of one, sum is a slow copy
                else:
                    result[tile] = x
        ctx.save_for_backward(x0, *weights, *mixed)
        ctx.residual, ctx.summed, ctx.coordinates = residual, summed, slices.shape[2]
        return tuple(result[..., : ctx.coordinates] for result in results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor) -> tuple[Tensor | None, ...]:
        layers, coordinates = len(d_results), ctx.coordinates
        x0, *saved = ctx.saved_tensors
        weights, mixed = saved[:layers], saved[layers:]
        d_x0 = torch.zeros_like(x0)
        d_weights = [torch.empty_like(weight) for weight in weights]
        for tile in _tiles(x0):
            x0_t, d_x0_t = x0[tile], d_x0[tile]
            x = [x0_t]
            for mix in mixed[:-1]:
                x.append(_cross(x[-1], x0_t, mix[tile], ctx.residual))
            d_x = torch.zeros_like(x0_t)
            for layer in reversed(range(layers)):
                d_result = d_results[layer] if ctx.summed else d_results[layer][tile]
                d_x[..., :coordinates] += d_result
                d_x0_t.addcmul_(d_x, mixed[layer][tile])
                d_mix = d_x * x0_t
                torch.bmm(d_mix.mT, x[layer], out=d_weights[layer][tile])
                d_x.baddbmm_(d_mix, weights[layer][tile], beta=float(ctx.residual))
            d_x0_t += d_x
        return d_x0[..., :coordinates], None, None, *d_weights


def _cross(x: Tensor, x0: Tensor, mixed: Tensor, residual: bool) -> Tensor:
    return torch.addcmul(x, x0, mixed) if residual else x0 * mixed


def _padded(slices: Tensor, weight: Tensor) -> Tensor:
    """(N, R, C) -> (N, R, P), in the weights' precision also where autocast lowers that of rows."""
    coordinates = slices.shape[2]
    padded = weight.new_empty(*slices.shape[:2], weight.shape[2])
    padded[..., :coordinates] = slices
    padded[..., coordinates] = 1
    padded[..., coordinates + 1 :] = 0
    return padded


def _tiles(x0: Tensor) -> list[slice]:
    """Slices at a time; on a GPU all, since there each call costs more than caches save."""
    slices, rows, width = x0.shape
    step = slices if x0.is_cuda else max(1, CACHE_FLOATS // max(1, rows * width))
    return [slice(first, first + step) for first in range(0, slices, step)]
