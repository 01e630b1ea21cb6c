"""How strongly the first layer of separate or shared filters weighs each pair of fields.

Shapes: F fields, H maps, N slices (see :mod:`modules.crossing.separation`), g their dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modules.crossing.network import CrossingNetwork
from modules.crossing.separation import FullFilter, LowRankFilter, Separation
from modules.crossing.slice_cross import CrossLayer
from modules.head import CrossingHead
from modules.ranker import LifelongRanker

Layer = FullFilter | LowRankFilter | CrossLayer


def first_layer(ranker: LifelongRanker) -> tuple[Layer, int] | None:
    """The first layer of a head of kind separation or cin, and g; None of any other head."""
    head = ranker.head
    if not (isinstance(head, CrossingHead) and isinstance(head.layers, CrossingNetwork)):
        return None
    part = dict(head.layers.parts).get("interactions")
    return (part.layers[0], part.group) if isinstance(part, Separation) else None


def pair_norms(layer: Layer, group: int = 1) -> np.ndarray:
    r"""(F, F), symmetric: length of all that the layer multiplies a product of two fields by.

    .. math:: \lVert W_{:,i,j} + W_{:,j,i} \rVert \ (i \ne j), \quad \lVert W_{:,i,i} \rVert

    over slices and maps. In the first layer both factors are the input: x_i x_j and x_j x_i are one
    product, so nothing but the sum of their weights says anything; what they differ in changes no
    logit. Map i of a cross layer is :math:`x_i \sum_j W_{ij} x_j`: there the two are of different
    maps, and their squares are added.
    """
    match layer:
        case CrossLayer():
            blocks = layer.weight.detach().double().unflatten(1, (group, -1))
            squares = blocks.unflatten(3, (group, -1)).square().sum((0, 1, 3))
            squares = squares + squares.T
        case FullFilter():
            squares = _filter_squares(layer.weight.detach().double().permute(0, 3, 2, 1))
        case LowRankFilter():
            u, v = layer.u.detach().double(), layer.v.detach().double()
            squares = _filter_squares(torch.einsum("nihr,njhr->nhij", u, v))
    # a square has one weight, which was counted twice
    squares.diagonal().div_(2 if isinstance(layer, CrossLayer) else 4)
    return squares.sqrt().cpu().numpy()


def _filter_squares(weight: Tensor) -> Tensor:
    """(N, H, F, F) -> (F, F)."""
    return (weight + weight.mT).square().sum((0, 1))


def partner_sums(norms: np.ndarray) -> np.ndarray:
    """(F,) sum of each field's norms over the other fields."""
    return norms.sum(axis=1) - np.diag(norms)


def field_names(ranker: LifelongRanker, numbers: tuple[str, ...]) -> list[str]:
    """(F,) names of what a crossing head crosses, in its order.

    Args:
        ranker: the model.
        numbers: names of the float columns that it reads.
    """
    events = [field.name for field in ranker.fields]
    interests = [f"interest: {name}" for _ in range(ranker.config.interests) for name in events]
    context = ranker.context.names if ranker.context is not None else []
    return [*events, *interests, *context, *numbers]
