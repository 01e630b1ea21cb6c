"""The settings behind the field's numbers on Criteo, as flags of ``twofold train``.

BARS (https://github.com/reczoo/BARS) trains every model by one protocol: Adam at 1e-3, an L2 on
the embeddings, one evaluation an epoch, all learning rates times 0.1 whenever the validation AUC
has not risen, and a stop at the second such evaluation in a row. docs/recipes.md has the commands,
what to expect, and where this trainer differs.
"""

from __future__ import annotations

from modules.crossing.presets import PRESETS

Flags = tuple[str, ...]

_PROTOCOL: Flags = (
    "--epochs", "100", "--evaluations-per-epoch", "1", "--patience", "2",
    "--plateau-patience", "1", "--plateau-factor", "0.1",
    "--dense-learning-rate", "0.001", "--l2", "0",
    "--tables.learning-rate", "0.01", "--tables.weight-decay", "1e-5",
)  # fmt: skip
ON_GPUS: Flags = ("--tables.kind", "adam", "--tables.learning-rate", "0.001")
"""To be added where there are some: FBGEMM has no Adam for CPUs."""

CRITEO_X1: Flags = (
    *_PROTOCOL, "--requests-per-batch", "4096",
    "--fields.attention-dim", "12", "--fields.representation-dim", "12",  # published: 10
)  # fmt: skip
"""For every model on a store of ``twofold prepare criteo --preparation x1``."""
CRITEO_X4: Flags = (
    *_PROTOCOL, "--requests-per-batch", "10000", "--fields.representation-dim", "16",
)  # fmt: skip
"""The same for ``--preparation x4``."""


def _decay(value: str) -> Flags:
    return ("--tables.weight-decay", value)


def _perceptron(dropout: str) -> Flags:
    return ("--model.crossing.deep", *["1000"] * 5, "--model.crossing.dropout", dropout)


_X1: dict[str, Flags] = {"fm": _decay("5e-6"), "nfm": _decay("1e-4"), "afm": _decay("1e-6")}
_X4: dict[str, Flags] = {
    "deepfm": _perceptron("0.2"),
    "cin": ("--model.crossing.layers", "4", "--model.crossing.maps", "64"),
    "xdeepfm": (
        *_perceptron("0.2"), *_decay("1e-4"),
        "--model.crossing.layers", "3", "--model.crossing.maps", "64",
    ),
    "dcn_v2": (*_perceptron("0.1"), "--model.crossing.batch-norm"),
    "final_mlp": (
        *_perceptron("0.2"), "--model.crossing.deep-second", "500", "--model.crossing.heads", "50",
    ),
    # not of BARS: the perceptron of deepfm, so that the two can be compared
    **dict.fromkeys(("secn_a_deep", "secn_a1_deep", "secn_b_deep"), _perceptron("0.2")),
}  # fmt: skip
MODELS_X1: dict[str, Flags] = {name: _X1.get(name, ()) for name in PRESETS}
"""Every network, and what it has other than ``CRITEO_X1``."""
MODELS_X4: dict[str, Flags] = {name: _X4.get(name, ()) for name in PRESETS}
"""The same beside ``CRITEO_X4``. Networks whose settings there are not known keep those of x1."""
