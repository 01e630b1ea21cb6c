"""Named networks: functions that return a config, with the settings of the public benchmarks (BARS,
Criteo_x1) where those are known.

The first sentence of a docstring says what the network is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from modules.crossing.config import CrossingConfig

HIDDEN = (400, 400, 400)
"""Of the perceptrons of most published runs."""


def lr() -> CrossingConfig:
    """Logistic regression: the linear term alone."""
    return CrossingConfig(kind="linear")


def fm() -> CrossingConfig:
    """Factorization machine."""
    return CrossingConfig(kind="fm")


def fwfm() -> CrossingConfig:
    """Field-weighted FM: a weight for each pair of fields."""
    return CrossingConfig(kind="fwfm")


def fvfm() -> CrossingConfig:
    """Field-vectorized FM: a weight for each pair and dimension."""
    return CrossingConfig(kind="fvfm")


def fmfm() -> CrossingConfig:
    """Field-matrixed FM: a matrix for each pair."""
    return CrossingConfig(kind="fmfm")


def nfm() -> CrossingConfig:
    """Neural FM: a perceptron on the sum of all pairs' products."""
    return CrossingConfig(kind="nfm", deep=HIDDEN, dropout=0.1)


def afm() -> CrossingConfig:
    """Attentional FM: attention over the pairs."""
    return CrossingConfig(kind="afm", attention_width=32)


def wide_deep() -> CrossingConfig:
    """Wide & Deep: the linear term and a perceptron."""
    return CrossingConfig(kind="linear", deep=HIDDEN, dropout=0.1)


def deepfm() -> CrossingConfig:
    """DeepFM: FM and a perceptron."""
    return CrossingConfig(kind="fm", deep=HIDDEN, dropout=0.1, batch_norm=True)


def dnn() -> CrossingConfig:
    """A perceptron alone."""
    return CrossingConfig(kind="dnn", linear=False, deep=HIDDEN, dropout=0.1)


def dcn() -> CrossingConfig:
    """Deep & Cross: a vector for each cross layer, and a perceptron."""
    return CrossingConfig(kind="cross_v1", linear=False, deep=HIDDEN, dropout=0.1)


def cross_v2() -> CrossingConfig:
    """DCN-V2's cross network alone."""
    return CrossingConfig(kind="cross_v2", linear=False, layers=5)


def dcn_v2() -> CrossingConfig:
    """DCN-V2: a matrix for each cross layer, and a perceptron."""
    return CrossingConfig(kind="cross_v2", linear=False, deep=(500, 500, 500), dropout=0.1)


def dcn_v2_low_rank() -> CrossingConfig:
    """DCN-V2 with matrices of rank 32."""
    return dataclasses.replace(dcn_v2(), rank=32)


def cin() -> CrossingConfig:
    """Compressed interaction network: xDeepFM without its perceptron."""
    return CrossingConfig(kind="cin", layers=5, maps=32)


def xdeepfm() -> CrossingConfig:
    """xDeepFM: CIN and a perceptron."""
    return CrossingConfig(kind="cin", layers=2, maps=16, deep=HIDDEN, dropout=0.2)


def autoint() -> CrossingConfig:
    """AutoInt: self-attention over the fields."""
    return CrossingConfig(
        kind="autoint", attention_layers=3, attention_width=256, heads=4, attention_norm=True
    )


def autoint_plus() -> CrossingConfig:
    """AutoInt+: AutoInt and a perceptron."""
    return CrossingConfig(
        kind="autoint",
        linear=False,
        attention_layers=3,
        attention_width=256,
        heads=2,
        attention_scale=False,
        deep=HIDDEN,
        dropout=0.1,
        batch_norm=True,
    )


def fibinet() -> CrossingConfig:
    """FiBiNET: bilinear products of fields and of weighted fields, and a perceptron on them."""
    return CrossingConfig(kind="fibinet", deep=HIDDEN, dropout=0.5)


def final_mlp() -> CrossingConfig:
    """FinalMLP: two perceptrons behind gates, and the products of what comes out."""
    return CrossingConfig(
        kind="final_mlp",
        linear=False,
        deep=HIDDEN,
        deep_second=(1000,),
        heads=200,
        gate_hidden=(64,),
        dropout=0.2,
    )


def fi_gnn() -> CrossingConfig:
    """Fi-GNN: gated message passing between the fields."""
    return CrossingConfig(kind="fi_gnn", linear=False)


def graph_fm() -> CrossingConfig:
    """GraphFM: products of fields along the best edges of a graph."""
    return CrossingConfig(kind="graph_fm", linear=False, attention_width=64, heads=2)


def secn_a() -> CrossingConfig:
    """SECN with full filters: CIN with filters of each dimension's own."""
    return CrossingConfig(kind="separation")


def secn_a1() -> CrossingConfig:
    """SECN with filters of rank 1."""
    return CrossingConfig(kind="separation", rank=1)


def secn_b() -> CrossingConfig:
    """SECN as a cross network within each dimension."""
    return CrossingConfig(kind="separation", form="cross", residual=True, layer_bias=True)


def secn_shared() -> CrossingConfig:
    """secn_b with one matrix for all dimensions: is separation good for anything?"""
    return dataclasses.replace(secn_b(), kind="cin")


def secn_full() -> CrossingConfig:
    """secn_b with all dimensions mixed, DCN-V2's matrix: does separation lose anything?"""
    return dataclasses.replace(secn_b(), group=0)


def _with_deep(config: CrossingConfig) -> CrossingConfig:
    return dataclasses.replace(config, deep=HIDDEN, dropout=0.1)


def secn_a_deep() -> CrossingConfig:
    """secn_a and a perceptron."""
    return _with_deep(secn_a())


def secn_a1_deep() -> CrossingConfig:
    """secn_a1 and a perceptron."""
    return _with_deep(secn_a1())


def secn_b_deep() -> CrossingConfig:
    """secn_b and a perceptron."""
    return _with_deep(secn_b())


def _with_attention(config: CrossingConfig) -> CrossingConfig:
    return dataclasses.replace(config, attention_layers=3, attention_width=64, heads=2)


def secn_a_attention() -> CrossingConfig:
    """secn_a and self-attention over the fields."""
    return _with_attention(secn_a())


def secn_b_attention() -> CrossingConfig:
    """secn_b and self-attention over the fields."""
    return _with_attention(secn_b())


PRESETS: dict[str, Callable[[], CrossingConfig]] = {
    preset.__name__: preset
    for preset in (
        lr, fm, fwfm, fvfm, fmfm, nfm, afm, wide_deep, deepfm, dnn, dcn, cross_v2, dcn_v2,
        dcn_v2_low_rank, cin, xdeepfm, autoint, autoint_plus, fibinet, final_mlp, fi_gnn, graph_fm,
        secn_a, secn_a1, secn_b, secn_shared, secn_full, secn_a_deep, secn_a1_deep, secn_b_deep,
        secn_a_attention, secn_b_attention,
    )
}  # fmt: skip
"""Every network by its name."""
