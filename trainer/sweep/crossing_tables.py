"""The tables of ``twofold sweep`` that are about crossing networks."""

from __future__ import annotations

from trainer.recipes import CRITEO_X1, CRITEO_X4, MODELS_X1, MODELS_X4
from trainer.sweep.rows import Row, SweepTable, flags_of


def _start(std: float) -> tuple[str, ...]:
    """Of all tables, for one may serve both tasks."""
    return flags_of(fields__attention_init_std=std, fields__representation_init_std=std)


CROSSING = (
    "lr", "fm", "fwfm", "fvfm", "fmfm", "nfm", "afm", "wide_deep", "deepfm", "dcn", "cross_v2",
    "dcn_v2", "cin", "xdeepfm", "autoint", "autoint_plus", "fibinet", "final_mlp", "fi_gnn",
    "graph_fm", "secn_a1", "secn_b", "secn_shared", "secn_full", "secn_b_deep",
)  # fmt: skip
"""Networks of one table; they read no history."""
TEACHER = (
    *_start(0.3),
    *flags_of(tables__kind="adagrad", tables__learning_rate=0.1, dense_learning_rate=0.05),
    *flags_of(requests_per_batch=500, epochs=20, evaluations_per_epoch=1, patience=100),
)
"""The regime on the teacher's rows: on 30,000 of them it finds the hidden vectors."""
TEACHER_WIDTH = flags_of(fields__attention_dim=4, fields__representation_dim=4)
"""That of the teacher's own vectors."""
WIDE = flags_of(fields__attention_dim=16, fields__representation_dim=16)
"""Four times that, for groups of dimensions."""
MATCHED = {
    "lr": (200, {}),
    "fm": (200, {}),
    "fwfm": (199, {}),
    "fvfm": (195, {}),
    "fmfm": (179, {}),
    "afm": (198, {"attention_width": 16}),
    "cin": (165, {"layers": 1, "maps": 0}),
    "dcn": (197, {"layers": 1, "dropout": 0}),
    "cross_v2": (152, {"layers": 1}),
    "autoint": (182, {"attention_layers": 1, "attention_width": 32, "heads": 2}),
    "fi_gnn": (178, {"layers": 1}),
    "graph_fm": (194, {"layers": 1, "attention_width": 16}),
    "secn_shared": (197, {"layers": 1}),
    "secn_full": (153, {"layers": 1}),
    "secn_a": (61, {"layers": 1}),
    "secn_a1": (177, {"layers": 1}),
    "secn_b": (187, {"layers": 1}),
}
"""Networks beside a perceptron of one hidden layer, whose width makes all parameters outside the
tables 10,000 within 5 %, on the teacher's 12 fields of width 4; and what else is set."""
MATCHED_ALONE = {
    "dnn": {"deep": 24, "dropout": 0},
    "afm": {"attention_width": 200},
    "cin": {"layers": 1, "maps": 8},
    "cross_v2": {"layers": 1, "rank": 12},
    "autoint": {"attention_layers": 1, "attention_width": 40, "heads": 2},
    "secn_a": {"layers": 1, "maps": 2},
    "secn_a1": {"layers": 1},
    "secn_b": {"layers": 2},
}
"""Networks without a perceptron, 1,215 parameters within 5 % by their own sizes."""
SURROUNDINGS = ("store", "hour_of_week", "age", "income", "household_size")
"""What the grocery log knows of a request."""
SIDES = ("category", "department", "brand", "manufacturer")
"""What it knows of an item."""
BY_WORTH = (
    "store", "income", "age", "manufacturer", "department", "hour_of_week", "brand",
    "household_size",
)  # fmt: skip
"""All of these but the category, in the order in which table context-fields ranks them."""


def _one_layer(name: str, reference: str | None = None) -> Row:
    return Row(f"{name}-1", name, flags_of(model__crossing__layers=1), reference)


def _matched_rows() -> tuple[Row, ...]:
    """Beside perceptrons, then alone."""

    def row(label: str, name: str, settings: dict[str, object], reference: str) -> Row:
        flags = {f"model__crossing__{key}": value for key, value in settings.items()}
        return Row(label, name, flags_of(**flags), reference)

    beside = {name: {"deep": width, **others} for name, (width, others) in MATCHED.items()}
    # NFM's perceptron stands on its products, which are no wider than a field
    beside["nfm"] = {"deep": (96, 96), "dropout": 0}
    return (
        *(row(name, name, settings, "secn_b") for name, settings in beside.items()),
        *(
            row(f"{name}-alone", name, settings, "secn_b-alone")
            for name, settings in MATCHED_ALONE.items()
        ),
    )


def _two_by_two_rows() -> tuple[Row, ...]:
    """The head, by what it gets of the history; separation in each of its forms."""
    mean = flags_of(model__sharing="shared", model__search="all", model__pooling="mean")
    filters = flags_of(
        model__crossing__form="filter",
        model__crossing__residual=False,
        model__crossing__layer_bias=False,
    )
    forms = {
        "separation": (),
        "separation-a1": (*filters, *flags_of(model__crossing__rank=1)),
        "separation-a": filters,
    }
    return (
        Row("mlp-mean", "mean_pooling"),
        Row("mlp-search", "dare"),
        *(
            Row(f"{name}-{pooling}", "dare_separation", (*flags, *of_history))
            for name, flags in forms.items()
            for pooling, of_history in (("mean", mean), ("search", ()))
        ),
    )


def _forward_rows() -> tuple[Row, ...]:
    """One field more in each row, which is compared with the row before."""
    labels = ("item", *(f"plus-{name}" for name in BY_WORTH))
    return tuple(
        Row(
            label,
            "secn_a1",
            ("--fields.without", *BY_WORTH[number:]) if BY_WORTH[number:] else (),
            labels[number - 1] if number else None,
        )
        for number, label in enumerate(labels)
    )


def _depth_rows() -> tuple[Row, ...]:
    """One thing each against secn_b of one layer, or secn_a of one layer for its rank."""
    one = {"model__crossing__layers": 1}
    return (
        *(
            Row(f"layers-{layers}", "secn_b", flags_of(model__crossing__layers=layers), "layers-1")
            for layers in (1, 2, 3, 4, 5)
        ),
        *(
            Row(
                f"rank-{rank or 'full'}",
                "secn_a",
                flags_of(model__crossing__rank=rank, **one),
                "rank-full",
            )
            for rank in (1, 2, 4, 0)
        ),
        Row("layers-3-rank-1", "secn_a1", (), "layers-3"),
        # one layer ends at the same degree whatever is shared: groups differ in what may mix
        *(
            Row(
                f"group-{group}",
                "secn_b",
                (*WIDE, *flags_of(model__crossing__group=group, **one)),
                "group-1",
            )
            for group in (1, 2, 4, 8, 16)
        ),
        Row("pool-maps", "secn_b", flags_of(model__crossing__pool="maps", **one), "layers-1"),
        Row("pool-sum-3", "secn_b", flags_of(model__crossing__pool_layers="sum"), "layers-3"),
        Row("normalize-1", "secn_b", flags_of(model__crossing__normalize=True, **one), "layers-1"),
        Row("normalize-3", "secn_b", flags_of(model__crossing__normalize=True), "layers-3"),
        Row(
            "no-residual-3",
            "secn_b",
            flags_of(model__crossing__residual=False),
            "layers-3",
        ),
        *(Row(f"start-{std:g}-3", "secn_b", _start(std), "layers-3") for std in (0.01, 0.1, 1.0)),
        # products of depth l grow with the power l + 1 of the start: depth again from a smaller one
        *(
            Row(
                f"start-0.1-{layers}",
                "secn_b",
                (*_start(0.1), *flags_of(model__crossing__layers=layers)),
                "start-0.1-3" if layers > 1 else "layers-1",
            )
            for layers in (1, 2, 4, 5)
        ),
    )


CROSSING_TABLES: dict[str, SweepTable] = {
    "crossing": SweepTable(
        sentence="What do crossing networks say of a log, without its histories and with them?",
        axis="model",
        reference="dare",
        flags=flags_of(history_length=400),
        rows=(
            Row("dare", "dare"),
            Row("dare_separation", "dare_separation"),
            *(Row(name, name) for name in CROSSING),
        ),
    ),
    "teacher": SweepTable(
        sentence="Does each way to share filters over dimensions win where the truth is its own?",
        axis="model",
        reference="fvfm",
        flags=(*TEACHER_WIDTH, *TEACHER),
        rows=(
            *(Row(name, name) for name in ("fwfm", "fvfm", "fmfm")),
            *(_one_layer(name, "secn_b-1") for name in ("secn_shared", "secn_b", "secn_full")),
        ),
    ),
    "matched": SweepTable(
        sentence="Which crossing is worth its parameters? Networks of equal size.",
        axis="model",
        reference="secn_b",
        flags=(*TEACHER_WIDTH, *TEACHER),
        rows=_matched_rows(),
    ),
    "criteo-x1": SweepTable(
        sentence="The crossing networks on Criteo by the protocol of the published numbers (x1).",
        axis="model",
        reference="lr",
        flags=CRITEO_X1,
        rows=tuple(Row(name, name, flags) for name, flags in MODELS_X1.items()),
    ),
    "criteo-x4": SweepTable(
        sentence="The same by protocol x4: numbers as ids, rare ids left out.",
        axis="model",
        reference="lr",
        flags=CRITEO_X4,
        rows=tuple(Row(name, name, flags) for name, flags in MODELS_X4.items()),
    ),
    "sparsity": SweepTable(
        sentence="Which crossing bears few rows an id? On teachers of more and more ids.",
        axis="model",
        reference="secn_b-1",
        flags=(*TEACHER_WIDTH, *TEACHER),
        rows=(
            *(Row(name, name) for name in ("fwfm", "fvfm", "fmfm")),
            *(_one_layer(name) for name in ("secn_b", "secn_a1", "secn_a")),
        ),
    ),
    "rare-ids": SweepTable(
        sentence="How often must an id have come to be worth a row? On stores by min_count.",
        axis="model",
        reference="lr",
        # a sample of a log: few steps, so the tables' fast optimizer, and the best epoch of a few
        flags=(
            *flags_of(requests_per_batch=500, epochs=5, evaluations_per_epoch=2, patience=4),
            *_start(0.1),
            *flags_of(tables__learning_rate=0.02),
        ),
        rows=(
            *(Row(name, name) for name in ("lr", "fwfm")),
            *(_one_layer(name) for name in ("secn_b", "secn_a1")),
        ),
    ),
    "thinned": SweepTable(
        sentence="Which crossing bears fewer training rows? On stores of a share of a log's rows.",
        axis="model",
        reference="secn_b-1",
        # of a share s take `-- --epochs 5/s`: as many steps, however few rows an epoch has
        flags=(
            *flags_of(requests_per_batch=500, epochs=5, evaluate_every=30, patience=5),
            *_start(0.1),
            *flags_of(tables__learning_rate=0.02),
        ),
        rows=(
            *(Row(name, name) for name in ("lr", "fwfm", "fvfm", "fmfm")),
            *(_one_layer(name) for name in ("secn_b", "secn_a1", "secn_a")),
        ),
    ),
    "context-fields": SweepTable(
        sentence="What is each field of the grocery log worth? Without histories, one left out.",
        axis="field left out",
        reference="all",
        rows=(
            Row("all", "secn_a1"),
            *(
                Row(f"without-{name}", "secn_a1", ("--fields.without", name))
                for name in (*SURROUNDINGS, *SIDES, "item")
            ),
            Row("without-surroundings", "secn_a1", ("--fields.without", *SURROUNDINGS)),
        ),
    ),
    "context-fields-forward": SweepTable(
        sentence="What does each field add? From item and category on, one field more a row.",
        axis="field added",
        reference="item",
        rows=_forward_rows(),
    ),
    "two-by-two": SweepTable(
        sentence="Separation in the head, attention over the history: what does each bring alone?",
        axis="head and pooling",
        reference="mlp-mean",
        flags=flags_of(history_length=100),
        rows=_two_by_two_rows(),
    ),
    "two-by-two-fields": SweepTable(
        sentence="The same for self-attention over the fields of rows without histories.",
        axis="crossing and attention",
        reference="lr",
        flags=(*TEACHER_WIDTH, *TEACHER),
        rows=tuple(
            Row(f"{name}{suffix}", experiment, (*flags, *attention))
            for name, experiment, flags in (
                ("lr", "lr", ()),
                *(
                    (name, name, flags_of(model__crossing__layers=1))
                    for name in ("secn_b", "secn_a1", "secn_a")
                ),
            )
            for suffix, attention in (
                ("", ()),
                (
                    "-attention",
                    flags_of(
                        model__crossing__attention_layers=1,
                        model__crossing__attention_width=64,
                        model__crossing__heads=2,
                    ),
                ),
            )
        ),
    ),
    "separation-depth": SweepTable(
        sentence="How deep, of what rank and in which groups should separation be?",
        axis="what differs from secn_b",
        reference="layers-1",
        flags=(*TEACHER_WIDTH, *TEACHER),
        rows=_depth_rows(),
    ),
}
"""Name -> table."""
