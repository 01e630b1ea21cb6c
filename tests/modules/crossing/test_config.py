"""What a config refuses, and that its message names what was given and the way out."""

from __future__ import annotations

import pytest
import torch

from modules.crossing import CrossingConfig, make_crossing

REFUSED = [
    ({"kind": "dcnv2"}, r"kind is one of linear, dnn, .*; got 'dcnv2'"),
    ({"form": "full"}, r"form is one of filter, cross; got 'full'"),
    ({"pool": "layers"}, r"pool is one of width, maps; got 'layers'"),
    ({"pool_layers": "mean"}, r"pool_layers is one of concat, sum; got 'mean'"),
    ({"kind": "fibinet", "bilinear": "pair"}, r"bilinear is one of all, each, interaction"),
    ({"layers": 0}, r"layers must be at least 1, got 0"),
    ({"rank": -1}, r"rank must be 0 or more, got -1"),
    ({"deep": (8, 0)}, r"deep must be positive, got \(8, 0\)"),
    ({"deep": (8,), "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ({"kind": "fm", "rank": 2}, r"rank=2 is of kind cin, separation, cross_v2; kind='fm'"),
    ({"kind": "dnn", "deep": (4,), "layers": 2}, r"layers=2 is of kind .*leave it out"),
    ({"kind": "cin", "group": 2}, r"group=2 is of kind separation; kind='cin'"),
    ({"dropout": 0.1}, r"dropout=0.1 is of perceptrons and there is none: give deep"),
    ({"batch_norm": True}, r"batch_norm=True is of perceptrons"),
    ({"heads": 2}, r"heads=2 goes with attention_layers above 0 or kind=graph_fm or final_mlp"),
    ({"attention_norm": True}, r"attention_norm=True goes with attention_layers above 0; got"),
    ({"kind": "linear", "linear": False}, r"kind='linear' is the linear term"),
    ({"kind": "dnn"}, r"kind='dnn' needs hidden widths in deep, got \(\)"),
    ({"kind": "final_mlp", "deep": (4,)}, r"two streams: give deep_second"),
    ({"kind": "autoint"}, r"kind='autoint' needs attention_layers of at least 1, got 0"),
    (
        {"kind": "final_mlp", "deep": (4,), "deep_second": (4,), "gate_first": (0,)},
        r"need gates: give gate_hidden",
    ),
    (
        {"kind": "final_mlp", "deep": (4,), "deep_second": (6,), "heads": 4},
        r"heads=4 do not divide deep_second's 6",
    ),
    (
        {"kind": "final_mlp", "deep": (4,), "deep_second": (6,), "gate_second": (-1,)},
        r"gate_second counts fields from 0, got \(-1,\)",
    ),
    (
        {"attention_layers": 1, "attention_width": 6, "heads": 4},
        r"heads=4 do not divide attention_width's 6",
    ),
    (
        {"kind": "graph_fm", "neighbours": (2, 2)},
        r"one number for each of the 3 layers, got \(2, 2\)",
    ),
    ({"form": "cross", "maps": 3}, r"as many maps as fields, got maps=3 and rank=0: leave both 0"),
    ({"form": "cross", "rank": 3}, r"got maps=0 and rank=3"),
    ({"group": 2}, r"group=2 goes with form='cross'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossingConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        ({"kind": "fm"}, 1, r"kind='fm' needs at least 2 fields of width 1, got 1 of width 4"),
        ({"kind": "linear"}, 0, r"needs at least 1 fields"),
        ({"form": "cross", "group": 3}, 3, r"group=3 does not divide the width 4: take a divisor"),
        ({"rank": 4}, 3, r"rank=4 is above the 3 fields, .*: take at most 3, or 0 for full"),
        ({"residual": True, "maps": 5}, 3, r"as many as fields, 3, got maps=5. Leave maps 0"),
        (
            {
                "kind": "final_mlp", "deep": (4,), "deep_second": (4,), "gate_hidden": (4,),
                "gate_first": (1, 3),
            },
            3,
            r"gate_first=\(1, 3\) names fields from 0 to 2 only",
        ),
        (
            {"kind": "graph_fm", "layers": 1, "neighbours": (4,)},
            3,
            r"neighbours=\(4,\) must be at most the 3 fields",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_fields_is_refused(settings: dict, fields: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_crossing(CrossingConfig(**settings), fields, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "separation", "attention_layers": 1, "heads": 2, "attention_norm": True},
        {"kind": "linear", "deep": (4,), "batch_norm": True, "dropout": 0.5},
        {"kind": "nfm", "deep": ()},
        {"residual": True, "maps": 3},
        {"form": "cross", "group": 0},
        {"kind": "cin", "form": "cross", "residual": True},
        {"kind": "cin", "rank": 2, "pool": "maps", "pool_layers": "sum"},
        {"kind": "graph_fm", "layers": 2, "neighbours": (3, 1), "heads": 4},
    ],
)
def test_what_makes_sense_is_built(settings: dict) -> None:
    network = make_crossing(CrossingConfig(**settings), 3, 4)
    assert network(torch.randn(5, 3, 4), torch.randn(5)).isfinite().all()
