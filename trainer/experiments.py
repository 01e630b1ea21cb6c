"""The experiments of ``twofold train``: functions that change one thing in another.

The first sentence of a docstring is what ``--help`` shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from modules.ranker import RankerConfig
from sharding.apply import TableOptimizer
from trainer.experiment import Experiment, FieldWidths


def dare() -> Experiment:
    """DARE: separate attention and representation tables, sampled auxiliary, cosine search."""
    return Experiment(model=RankerConfig(auxiliary="sampled", score="cosine"), history_length=1600)


def twin() -> Experiment:
    """TWIN: one table for both tasks, which starts small; all else as in ``dare``."""
    base = dare()
    return base.changed(
        model=dataclasses.replace(base.model, sharing="shared"),
        # representations learn badly from a wide start
        fields=FieldWidths(attention_init_std=0.01),
    )


def dare_dot() -> Experiment:
    """DARE searching by plain dot product, all else as in ``dare``."""
    base = dare()
    return base.changed(model=dataclasses.replace(base.model, score="dot"))


def dare_paper() -> Experiment:
    """DARE as published: history 200, full auxiliary, dot product, small start.

    The tables' optimizer is row-wise Adagrad: the paper's dense Adam moves every row in each step.
    """
    return Experiment(
        model=RankerConfig(auxiliary="full", score="dot"),
        fields=FieldWidths(attention_init_std=0.01),
        tables=TableOptimizer(learning_rate=0.05),
        history_length=200,
        requests_per_batch=683,  # about 2,048 candidates at one positive and two negatives each
        epochs=2,
        dense_learning_rate=0.01,
    )


def twin_paper() -> Experiment:
    """TWIN as the paper compares it: ``dare_paper`` with shared tables."""
    base = dare_paper()
    return base.changed(model=dataclasses.replace(base.model, sharing="shared"))


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    function.__name__: function for function in (dare, twin, dare_dot, dare_paper, twin_paper)
}
