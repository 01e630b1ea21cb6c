"""What a crossing network is made of, and which settings go with which kind."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from modules.crossing.fibinet import Bilinear
from modules.crossing.separation import Form, Pool, PoolLayers

Kind = Literal[
    "linear", "dnn", "fm", "fwfm", "fvfm", "fmfm", "nfm", "afm", "cross_v1", "cross_v2", "cin",
    "separation", "autoint", "fibinet", "final_mlp", "fi_gnn", "graph_fm",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CrossingConfig:
    """One network from field vectors to log odds. Settings of another kind are refused."""

    kind: Kind = "separation"
    """linear: none but the linear term and what is added (LR, Wide & Deep); dnn: the deep part;
    fm, fwfm, fvfm, fmfm, nfm, afm: products of two fields; cross_v1, cross_v2: the cross networks
    of Deep & Cross and DCN-V2; cin: filters shared over the embedding's dimensions (xDeepFM);
    separation: filters of each dimension's own (SECN); autoint: attention over the fields;
    fibinet: bilinear products of weighted fields; final_mlp: two perceptrons and their products;
    fi_gnn, graph_fm: fields as a graph."""
    linear: bool = True
    """Adds the linear term."""
    normalize: bool = False
    """Divides each dimension of the input by its root mean square over the fields: products of
    small embeddings vanish with depth."""
    layers: int = 3
    """cross_v1, cross_v2, cin, separation, fi_gnn, graph_fm: layers (L)."""
    form: Form = "filter"
    """cin, separation. filter: a weight for each pair of a map and a field (SECN-A); cross:
    DCN-V2's layer within each dimension (SECN-B)."""
    maps: int = 0
    """cin, separation, form filter: maps of each layer (H); 0: as many as fields."""
    rank: int = 0
    """cin, separation, form filter, and cross_v2: rank of the weights (r); 0: full."""
    group: int = 1
    """separation, form cross: dimensions that mix (g), a divisor of the width; 1: each alone;
    0: all, as in DCN-V2."""
    residual: bool = False
    """cin, separation: adds the layer's input to its output; filters then need maps 0."""
    layer_bias: bool = False
    """cin, separation: a bias in each layer."""
    pool: Pool = "width"
    """cin, separation: sums each layer over the dimensions (width), or over the maps."""
    pool_layers: PoolLayers = "concat"
    """cin, separation: the pooled layers side by side, or their sum."""
    deep: tuple[int, ...] = ()
    """Hidden widths of a perceptron on all fields, whose logit is added; (): none. nfm, fibinet: of
    the one on their products; final_mlp: of the first stream."""
    deep_second: tuple[int, ...] = ()
    """final_mlp: hidden widths of the second stream."""
    dropout: float = 0.0
    """After each hidden layer of the perceptrons."""
    batch_norm: bool = False
    """Before each ReLU of the perceptrons."""
    attention_layers: int = 0
    """Self-attention over the fields (AutoInt), whose logit is added: layers; 0: none."""
    attention_width: int = 32
    """attention_layers, afm, graph_fm: width of all heads together."""
    heads: int = 1
    """attention_layers, graph_fm, and final_mlp's products: a divisor of the widths."""
    attention_scale: bool = True
    """attention_layers: divides scores by the root of a head's width."""
    attention_residual: bool = True
    """attention_layers: adds the layer's input, through a map where the width changes."""
    attention_norm: bool = False
    """attention_layers: layer norm before ReLU."""
    bilinear: Bilinear = "interaction"
    """fibinet: one matrix for all pairs, for each left field, or for each pair (interaction)."""
    reduction: int = 3
    """fibinet: fields for each number in the middle of squeeze and excitation."""
    gate_hidden: tuple[int, ...] = ()
    """final_mlp: hidden widths of the two gates; (): no gates."""
    gate_first: tuple[int, ...] = ()
    """final_mlp: numbers of the fields that open the first stream's gate; (): a learned vector."""
    gate_second: tuple[int, ...] = ()
    """final_mlp: the same of the second stream."""
    neighbours: tuple[int, ...] = ()
    """graph_fm: edges kept of each node, for each layer; (): all."""

    def __post_init__(self) -> None:
        self._refuse_unknown_words()
        self._refuse_bad_numbers()
        self._refuse_what_is_not_used()
        self._refuse_what_does_not_go_together()
        self._refuse_heads_that_do_not_divide()

    @property
    def reads_vectors(self) -> bool:
        """Whether any part looks at field vectors; the linear term does not."""
        return bool(self.kind != "linear" or self.deep or self.attention_layers)

    def _refuse_unknown_words(self) -> None:
        for name, words in (
            ("kind", Kind), ("form", Form), ("pool", Pool), ("pool_layers", PoolLayers),
            ("bilinear", Bilinear),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(words):
                raise ValueError(
                    f"{name} is one of {', '.join(get_args(words))}; got {getattr(self, name)!r}."
                )

    def _refuse_bad_numbers(self) -> None:
        for name in ("layers", "attention_width", "heads", "reduction"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("maps", "rank", "group", "attention_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        for name in ("deep", "deep_second", "gate_hidden", "neighbours"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("gate_first", "gate_second"):
            if min(getattr(self, name), default=0) < 0:
                raise ValueError(f"{name} counts fields from 0, got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")

    def _refuse_what_is_not_used(self) -> None:
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        for name, kinds in _KINDS_OF.items():
            if name in changed and self.kind not in kinds:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of kind {', '.join(kinds)}; "
                    f"kind={self.kind!r} does not use it: leave it out."
                )
        perceptrons = self.deep or self.deep_second
        for name in {"dropout", "batch_norm"} & changed:
            if not perceptrons:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of perceptrons and there is none: give "
                    "deep its hidden widths, or leave it out."
                )
        for name in ("attention_width", "heads", *_ATTENTION):
            users = _ALSO_USE.get(name, ())
            if name in changed and not self.attention_layers and self.kind not in users:
                of_kind = f" or kind={' or '.join(users)}" if users else ""
                raise ValueError(
                    f"{name}={getattr(self, name)!r} goes with attention_layers above 0{of_kind}; "
                    f"got attention_layers=0 and kind={self.kind!r}."
                )

    def _refuse_what_does_not_go_together(self) -> None:
        if self.kind == "linear" and not self.linear:
            raise ValueError("kind='linear' is the linear term: take linear=True or another kind.")
        if self.kind in ("dnn", "final_mlp") and not self.deep:
            raise ValueError(f"kind={self.kind!r} needs hidden widths in deep, got ().")
        if self.kind == "final_mlp" and not self.deep_second:
            raise ValueError("kind='final_mlp' has two streams: give deep_second its widths too.")
        if self.kind == "autoint" and not self.attention_layers:
            raise ValueError("kind='autoint' needs attention_layers of at least 1, got 0.")
        if (self.gate_first or self.gate_second) and not self.gate_hidden:
            raise ValueError("gate_first and gate_second need gates: give gate_hidden its widths.")
        if self.neighbours and len(self.neighbours) != self.layers:
            raise ValueError(
                f"neighbours has one number for each of the {self.layers} layers, got "
                f"{self.neighbours}."
            )
        if self.form == "cross" and (self.maps or self.rank):
            raise ValueError(
                f"form='cross' has full matrices and as many maps as fields, got maps={self.maps} "
                f"and rank={self.rank}: leave both 0, or take form='filter'."
            )
        if self.form == "filter" and self.group != 1:
            raise ValueError(
                f"group={self.group} goes with form='cross'; filters are of single dimensions."
            )

    def _refuse_heads_that_do_not_divide(self) -> None:
        widths = {}
        if self.attention_layers or self.kind == "graph_fm":
            widths["attention_width"] = self.attention_width
        if self.kind == "final_mlp":
            widths |= {"deep": self.deep[-1], "deep_second": self.deep_second[-1]}
        for name, width in widths.items():
            if width % self.heads:
                raise ValueError(
                    f"heads={self.heads} do not divide {name}'s {width}: change one of them."
                )


_MAPS = ("cin", "separation")
_KINDS_OF: dict[str, tuple[Kind, ...]] = {
    "layers": ("cross_v1", "cross_v2", *_MAPS, "fi_gnn", "graph_fm"),
    "form": _MAPS,
    "maps": _MAPS,
    "rank": (*_MAPS, "cross_v2"),
    "group": ("separation",),
    "residual": _MAPS,
    "layer_bias": _MAPS,
    "pool": _MAPS,
    "pool_layers": _MAPS,
    "deep_second": ("final_mlp",),
    "bilinear": ("fibinet",),
    "reduction": ("fibinet",),
    "gate_hidden": ("final_mlp",),
    "gate_first": ("final_mlp",),
    "gate_second": ("final_mlp",),
    "neighbours": ("graph_fm",),
}
"""Kinds that use a setting; those not named here are of every kind."""
_ATTENTION = ("attention_scale", "attention_residual", "attention_norm")
_ALSO_USE: dict[str, tuple[Kind, ...]] = {
    "attention_width": ("afm", "graph_fm"),
    "heads": ("graph_fm", "final_mlp"),
}
"""Kinds that use a setting of the self-attention for themselves."""
