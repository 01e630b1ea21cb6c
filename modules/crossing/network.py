"""One interface to every crossing network: field vectors and the linear term in, log odds out.

Shapes: S candidates, F fields, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.crossing import pairs
from modules.crossing.attention import FieldAttention
from modules.crossing.config import CrossingConfig
from modules.crossing.cross import CrossNetV1, CrossNetV2
from modules.crossing.deep import Deep, FinalMLP
from modules.crossing.fibinet import FiBiNET
from modules.crossing.graph import FiGNN, GraphFM
from modules.crossing.parameters import start_linear
from modules.crossing.separation import Separation

SQUARE_FLOOR = 1e-10
"""Added to mean squares: far below those of embeddings that start at N(0, 1e-4²)."""


class CrossingNetwork(nn.Module):
    r"""The sum of what its parts say.

    .. math:: \mathrm{logit} = w_{lin} \cdot x + b + \textstyle\sum_k \mathrm{part}_k(X^0)
    """

    def __init__(self, parts: dict[str, nn.Module], *, linear: bool, normalize: bool) -> None:
        super().__init__()
        self.linear, self.normalize = linear, normalize
        self.parts = nn.ModuleDict(parts)
        self.bias = nn.Parameter(torch.zeros(1))
        self.apply(start_linear)

    def forward(self, fields: Tensor, first_order: Tensor) -> Tensor:
        """(S, F, D) field vectors and the (S,) linear term -> (S,) log odds.

        A network without the linear term does not read ``first_order``.
        """
        if self.normalize:
            fields = slice_norm(fields)
        logits = self.bias.expand(len(fields))
        if self.linear:
            logits = logits + first_order
        for part in self.parts.values():
            logits = logits + part(fields)
        return logits


def slice_norm(fields: Tensor) -> Tensor:
    """(S, F, D) -> the same with a root mean square of 1 over the fields of each slice."""
    return fields * (fields.square().mean(1, keepdim=True) + SQUARE_FLOOR).rsqrt()


def make_crossing(config: CrossingConfig, fields: int, width: int) -> CrossingNetwork:
    """The :class:`CrossingNetwork` of ``config`` for ``fields`` vectors of ``width``."""
    _check_sizes(config, fields, width)
    parts: dict[str, nn.Module] = {}
    if (interactions := _interactions(config, fields, width)) is not None:
        parts["interactions"] = interactions
    if config.deep and config.kind not in _OWN_PERCEPTRON:
        parts["deep"] = Deep(fields, width, config.deep, config.dropout, config.batch_norm)
    if config.attention_layers:
        parts["attention"] = FieldAttention(
            fields,
            width,
            config.attention_layers,
            config.attention_width,
            config.heads,
            scale=config.attention_scale,
            residual=config.attention_residual,
            layer_norm=config.attention_norm,
        )
    return CrossingNetwork(parts, linear=config.linear, normalize=config.normalize)


_OWN_PERCEPTRON = ("nfm", "fibinet", "final_mlp")
_PAIRS = ("fm", "fwfm", "fvfm", "fmfm", "nfm", "afm", "fibinet", "fi_gnn")


def _check_sizes(config: CrossingConfig, fields: int, width: int) -> None:
    least = 2 if config.kind in _PAIRS else 1
    if fields < least or width < 1:
        raise ValueError(
            f"kind={config.kind!r} needs at least {least} fields of width 1, got {fields} of width "
            f"{width}."
        )
    if config.group and width % config.group:
        raise ValueError(
            f"group={config.group} does not divide the width {width}: take a divisor of {width}, "
            "or 0 for all of it."
        )
    if config.residual and config.form == "filter" and config.maps not in (0, fields):
        raise ValueError(
            f"residual adds maps to maps: filters then have as many as fields, {fields}, got "
            f"maps={config.maps}. Leave maps 0, or residual False."
        )
    if config.rank > fields and config.kind != "cross_v2":
        raise ValueError(
            f"rank={config.rank} is above the {fields} fields, whose rank is that of full filters: "
            f"take at most {fields}, or 0 for full."
        )
    for name in ("gate_first", "gate_second"):
        if max(getattr(config, name), default=0) >= fields:
            raise ValueError(
                f"{name}={getattr(config, name)} names fields from 0 to {fields - 1} only."
            )
    if max(config.neighbours, default=0) > fields:
        raise ValueError(f"neighbours={config.neighbours} must be at most the {fields} fields.")


def _interactions(config: CrossingConfig, fields: int, width: int) -> nn.Module | None:
    """The part that gives the network its name; None where it has only the common ones."""
    perceptron = (config.deep, config.dropout, config.batch_norm)
    match config.kind:
        case "linear" | "dnn" | "autoint":
            return None
        case "fm":
            return pairs.FM()
        case "fwfm":
            return pairs.FwFM(fields)
        case "fvfm":
            return pairs.FvFM(fields, width)
        case "fmfm":
            return pairs.FmFM(fields, width)
        case "nfm":
            return pairs.NFM(width, *perceptron)
        case "afm":
            return pairs.AFM(width, config.attention_width)
        case "cross_v1":
            return CrossNetV1(fields, width, config.layers)
        case "cross_v2":
            return CrossNetV2(fields, width, config.layers, config.rank or None)
        case "cin" | "separation":
            return _separation(config, fields, width)
        case "fibinet":
            return _fibinet(config, fields, width)
        case "final_mlp":
            return _final_mlp(config, fields, width)
        case "fi_gnn":
            return FiGNN(fields, width, config.layers)
        case "graph_fm":
            return GraphFM(
                width, config.layers, config.attention_width, config.heads, config.neighbours
            )


def _separation(config: CrossingConfig, fields: int, width: int) -> Separation:
    return Separation(
        fields,
        width,
        config.layers,
        form=config.form,
        shared=config.kind == "cin",
        maps=config.maps or None,
        rank=config.rank or None,
        group=config.group or width,
        residual=config.residual,
        layer_bias=config.layer_bias,
        pool=config.pool,
        pool_layers=config.pool_layers,
    )


def _fibinet(config: CrossingConfig, fields: int, width: int) -> FiBiNET:
    return FiBiNET(
        fields,
        width,
        config.deep,
        bilinear=config.bilinear,
        reduction=config.reduction,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )


def _final_mlp(config: CrossingConfig, fields: int, width: int) -> FinalMLP:
    return FinalMLP(
        fields,
        width,
        (config.deep, config.deep_second),
        heads=config.heads,
        gate_hidden=config.gate_hidden,
        gate_fields=(config.gate_first, config.gate_second),
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )
