"""The tables of ``twofold sweep``: data, nothing else.

The command line of a cell is the table's flags, then the user's, then the row's: the last wins, so
that nobody can undo what a row is about.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.sweep.crossing_tables import CROSSING_TABLES
from trainer.sweep.replica_tables import REPLICA_TABLES
from trainer.sweep.rows import Row, SweepTable
from trainer.sweep.rows import flags_of as _flags
from trainer.sweep.step_tables import STEP_TABLES

MODELS = (
    "dare", "twin", "twin_without_tr", "twin_hard", "twin_projected", "twin_projected_event",
    "twin_three", "twin_four", "din", "sim_hard", "sim_soft", "eta", "sdim", "twin_v2",
    "target_attention", "mean_pooling",
)  # fmt: skip
SEARCHES = (
    "twin", "target_attention", "twin_hard", "sim_hard", "sim_soft", "eta", "din", "twin_v2",
)  # fmt: skip
"""Models of one table that may have two."""
SAMPLED_LOSS = {"model__auxiliary": "sampled", "model__auxiliary_others": 20}
"""As most tables were made. Table ``auxiliary`` shows five others to be enough: the default."""
SAMPLED = (
    "dare", "twin", "twin_without_tr", "twin_projected", "twin_projected_event", "twin_three",
    "twin_four", "din", "eta",
)  # fmt: skip
"""Models that most tables train with the sampled auxiliary, which table ``auxiliary`` shows to help
where histories are short."""
WITHOUT_AUXILIARY = ("sdim", "target_attention", "mean_pooling")
"""Models that see the whole history at once: there is nothing more for a second loss to see."""
PUBLISHED = (
    "--history-length", "200", "--tables.learning-rate", "0.05", "--requests-per-batch", "683",
    "--epochs", "2", "--dense-learning-rate", "0.01",
)  # fmt: skip
"""The regime of experiment ``dare_paper``."""


LAG = (
    *_flags(requests_per_batch=50, epochs=2, evaluations_per_epoch=2, patience=100),
    *_flags(fields__attention_init_std=0.1, fields__representation_init_std=0.1),
    *_flags(dense_learning_rate=0.005),
)
"""The regime on synthetic users whose interest lies a fixed number of events back."""


def _published_objective(model: str) -> tuple[str, ...]:
    flags = ("--model.small-maps",)
    if model != "din":
        flags += ("--model.score", "dot")
    return flags if model in WITHOUT_AUXILIARY else (*flags, "--model.auxiliary", "full")


def _auxiliary(model: str) -> tuple[str, ...]:
    return _flags(**SAMPLED_LOSS) if model in SAMPLED else ()


def _paired(flag: str, values: Sequence[int], base: int) -> tuple[Row, ...]:
    """DARE at each value against DARE at ``base``; TWIN at each against DARE at the same."""
    return tuple(
        Row(
            f"{model}-{value}",
            model,
            (*_auxiliary(model), *_flags(**{flag: value})),
            f"dare-{base if model == 'dare' else value}",
            line=model,
            x=value,
        )
        for model in ("dare", "twin")
        for value in values
    )


def _widths(model: str, attention: int, representation: int, reference: str) -> Row:
    flags = _flags(
        **SAMPLED_LOSS,
        fields__attention_dim=attention,
        fields__representation_dim=representation,
    )
    return Row(f"{model}-{attention}", model, flags, reference, line=model, x=attention)


def _identity_prior() -> tuple[Row, ...]:
    """Each start against 0.01, all else equal."""
    rows = []
    for history in (200, 800):
        base = {**SAMPLED_LOSS, "history_length": history}
        for sharing in ("decoupled", "shared"):
            for score in ("dot", "cosine"):
                line = f"{score}-{sharing}-{history}"
                reference = f"{line}-0.01"
                for std in (0.01, 0.1, 0.3, 1.0, 1.5):
                    start = {"fields__attention_init_std": std}
                    if sharing == "shared":  # one table has one start
                        start["fields__representation_init_std"] = std
                    flags = _flags(model__sharing=sharing, model__score=score, **base, **start)
                    rows.append(Row(f"{line}-{std:g}", "dare", flags, reference, line, std))
    return tuple(rows)


def _prior_parts() -> tuple[Row, ...]:
    """What makes the prior: the item's rows, the category's, or the cosine's temperature."""
    stds = "--fields.attention-init-stds"
    dot = _flags(**SAMPLED_LOSS, model__score="dot")
    return (
        Row("dot-narrow", "dare", dot),
        Row("dot-item", "dare", (*dot, stds, "item", "1"), "dot-narrow"),
        Row("dot-category", "dare", (*dot, stds, "category", "1"), "dot-narrow"),
        Row("dot-both", "dare", (*dot, stds, "item", "1", "category", "1"), "dot-narrow"),
        *(
            Row(
                f"cosine-{value}",
                "dare",
                _flags(**SAMPLED_LOSS, model__temperature=value),
            )
            for value in (3, 6, 12, 24)
        ),
    )


TABLES: dict[str, SweepTable] = {
    "dare-table": SweepTable(
        sentence="DARE beside the models it is compared with, all on one base, history 400.",
        axis="model",
        reference="dare",
        flags=_flags(history_length=400),
        rows=tuple(Row(name, name, _auxiliary(name)) for name in MODELS),
    ),
    "dare-table-paper": SweepTable(
        sentence="The same models, trained as published: dot product, full auxiliary, history 200.",
        axis="model",
        reference="dare",
        flags=PUBLISHED,
        rows=tuple(Row(name, name, _published_objective(name)) for name in MODELS),
    ),
    "decoupling": SweepTable(
        sentence="What do tables apart bring to each search? Each against itself with one table.",
        axis="model",
        reference="twin",
        flags=_flags(history_length=400),
        rows=tuple(
            row
            for model in SEARCHES
            for row in (
                Row(model, model, _auxiliary(model), model),
                Row(
                    f"{model}-apart",
                    model,
                    (*_auxiliary(model), *_flags(model__sharing="decoupled")),
                    model,
                ),
            )
        ),
    ),
    "search": SweepTable(
        sentence="What does finding K events lose against attending to all, with tables apart?",
        axis="history length",
        reference="dare-400",
        rows=tuple(
            Row(
                f"{name}-{history}",
                model,
                (
                    *_auxiliary(model),
                    *_flags(history_length=history, model__sharing="decoupled"),
                ),
                f"dare-{400 if name == 'dare' else history}",
                line=name,
                x=history,
            )
            for name, model in (("dare", "dare"), ("all", "target_attention"))
            for history in (100, 200, 400, 800, 1600)
        ),
    ),
    "history-length": SweepTable(
        sentence="What do more events of the past bring DARE and TWIN?",
        axis="history length",
        reference="dare-200",
        rows=_paired("history_length", (50, 100, 200, 400, 800, 1600, 2000), base=200),
    ),
    "top-k": SweepTable(
        sentence="How many events must the search hand to attention?",
        axis="K, events that the search hands to attention",
        reference="dare-20",
        flags=_flags(history_length=400),
        rows=_paired("model__top_k", (5, 10, 20, 50, 100), base=20),
    ),
    "attention-width": SweepTable(
        sentence="How narrow may attention be: DARE's attention tables alone, TWIN's one table.",
        axis="attention width of a field",
        reference="dare-16",
        flags=_flags(history_length=400),
        rows=(
            *(_widths("dare", width, 16, "dare-16") for width in (2, 4, 8, 16, 32, 64)),
            *(_widths("twin", width, width, f"dare-{width}") for width in (2, 4, 8, 16, 32, 64)),
        ),
    ),
    "auxiliary": SweepTable(
        sentence="What is the second loss worth, over the whole history and over a sample of it?",
        axis="auxiliary loss",
        reference="full",
        flags=_flags(history_length=400),
        rows=(
            Row("full", "dare", _flags(model__auxiliary="full")),
            *(
                Row(
                    f"sampled-{others}",
                    "dare",
                    _flags(model__auxiliary="sampled", model__auxiliary_others=others),
                )
                for others in (5, 20, 80)
            ),
            Row("none", "dare", _flags(model__auxiliary="none")),
        ),
    ),
    "auxiliary-cost": SweepTable(
        sentence="Which second loss pays, if its cost could buy a longer history instead?",
        axis="auxiliary loss, history length and K",
        reference="sampled-400",
        rows=(
            # about 70 µs of CPU time per candidate each
            *(
                Row(
                    f"{auxiliary}-{history}",
                    "dare",
                    _flags(**loss, history_length=history),
                )
                for auxiliary, loss, history in (
                    ("full", {"model__auxiliary": "full"}, 200),
                    ("sampled", SAMPLED_LOSS, 400),
                    ("none", {"model__auxiliary": "none"}, 2000),
                )
            ),
            # where the log has no more history to buy: 20 others, or 20 more winners
            Row(
                "sampled-1600",
                "dare",
                _flags(**SAMPLED_LOSS, history_length=1600),
                "none-1600",
            ),
            *(
                Row(
                    label,
                    "dare",
                    _flags(model__auxiliary="none", history_length=1600, model__top_k=k),
                    "none-1600",
                )
                for label, k in (("none-1600", 20), ("none-1600-k40", 40))
            ),
        ),
    ),
    "identity-prior": SweepTable(
        sentence="Should a search find the same item from its first step? Starts against 0.01.",
        axis="standard deviation of the attention rows' start",
        reference="dot-decoupled-200-0.01",
        rows=_identity_prior(),
    ),
    "identity-prior-parts": SweepTable(
        sentence="Which rows have to start wide, and how sharp should a cosine be?",
        axis="what starts wide, or the cosine's first temperature",
        reference="cosine-6",
        flags=_flags(history_length=400),
        rows=_prior_parts(),
    ),
    **CROSSING_TABLES,
    **REPLICA_TABLES,
    **STEP_TABLES,
    "planted": SweepTable(
        sentence="Is the gain of tables apart there where the truth of a synthetic log wants it?",
        axis="model",
        reference="twin",
        # one item table each: what the log hides must be learned from clicks. A flat start of the
        # cosine lets every row learn
        flags=(
            *_flags(history_length=100, epochs=3, patience=100, dense_learning_rate=0.005),
            *_flags(**SAMPLED_LOSS, model__temperature=1, model__top_k=50),
            *("--fields.without", "category", "recency"),
        ),
        rows=(Row("dare", "dare"), Row("twin", "twin")),
    ),
    "lag": SweepTable(
        sentence="Which model finds an interest that lies some events back, in how long a history?",
        axis="history length",
        reference="attention-1000",
        flags=LAG,
        rows=tuple(
            Row(
                f"{name}-{history}",
                model,
                (*flags, *_flags(history_length=history)),
                f"attention-{history}",
                line=name,
                x=history,
            )
            for name, model, flags in (
                ("mean", "mean_pooling", ()),
                ("attention", "target_attention", ()),
                ("self", "self_attention", ()),
                ("search", "dare", ()),
                ("hashes", "sdim", ()),
            )
            for history in (50, 100, 200, 500, 1000, 2000)
        ),
    ),
    "epochs": SweepTable(
        sentence="What do further passes over the same requests bring DARE and TWIN?",
        axis="epochs",
        reference="dare-1",
        # the validation AUC falls in a later pass: neither stops before its end
        flags=_flags(history_length=400, patience=100),
        rows=_paired("epochs", (1, 2), base=1),
    ),
    "width": SweepTable(
        sentence="Does DARE's lead over TWIN depend on the width of all tables?",
        axis="width of a field",
        reference="dare-16",
        flags=_flags(history_length=400),
        rows=tuple(
            _widths(model, width, width, "dare-16" if model == "dare" else f"dare-{width}")
            for model in ("dare", "twin")
            for width in (4, 16, 64)
        ),
    ),
}
