"""The experiments of ``twofold train``: functions that change one thing in another.

The first sentence of a docstring is what ``--help`` shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from modules.crossing.presets import PRESETS
from modules.ranker_config import RankerConfig
from sharding.apply import TableOptimizer
from trainer.experiment import Experiment, FieldWidths


def dare() -> Experiment:
    """DARE: separate attention and representation tables, cosine search, no auxiliary loss."""
    return Experiment(model=RankerConfig(auxiliary="none", score="cosine"), history_length=1600)


def _like_dare(**model: Any) -> Experiment:
    base = dare()
    return base.changed(model=dataclasses.replace(base.model, **model))


def _like_twin(**model: Any) -> Experiment:
    return _like_dare(**{"sharing": "shared"} | model)


def twin() -> Experiment:
    """TWIN: one table for both tasks; all else as in ``dare``."""
    return _like_twin()


def twin_without_tr() -> Experiment:
    """TWIN without target-aware representation: the head sees no product with the candidate."""
    return _like_twin(target_aware=False)


def twin_hard() -> Experiment:
    """TWIN (hard): the last events of the candidate's category, filled up with others."""
    return _like_twin(search="category_filled", auxiliary="full")


def twin_projected() -> Experiment:
    """TWIN with projections: four bias-free linear maps of each field's one table."""
    return _like_twin(sharing="projected")


def twin_projected_event() -> Experiment:
    """TWIN with projections after concatenation: four linear maps of the whole event."""
    return _like_twin(sharing="projected", projection="event")


def twin_three() -> Experiment:
    """Three tables: attention of events, attention of candidates, representation."""
    return _like_twin(sharing="three")


def twin_four() -> Experiment:
    """TWIN-4E: four tables, events and candidates apart in both tasks."""
    return _like_twin(sharing="four")


def din() -> Experiment:
    """DIN over a long history: a small network scores events, which know no recency."""
    return _like_twin(score="mlp").changed(fields=FieldWidths(without=("recency",)))


def sim_hard() -> Experiment:
    """SIM (hard): attention over the last events of the candidate's category, and no others."""
    return _like_twin(search="category", auxiliary="full")


def sim_soft() -> Experiment:
    """SIM (soft): search by a dot product of its own, which the auxiliary task trains."""
    return _like_twin(search="soft", auxiliary="full")


def eta() -> Experiment:
    """ETA: search by Hamming distance of random sign codes."""
    return _like_twin(search="simhash")


def sdim() -> Experiment:
    """SDIM: no search; events count where their hashes collide with the candidate's."""
    return _like_twin(search="all", pooling="collisions", auxiliary="none")


def twin_v2() -> Experiment:
    """TWIN-V2: search among clusters of like events, which count as much as their members."""
    return _like_twin(search="clusters", auxiliary="full")


def target_attention() -> Experiment:
    """Plain target attention over the whole history, without a search."""
    return _like_twin(search="all", auxiliary="none")


def self_attention() -> Experiment:
    """Events of the last 200 attend to each other, then the candidate to them (SASRec, DIN)."""
    return _like_twin(search="all", pooling="self_attention", auxiliary="none").changed(
        history_length=200
    )


def mean_pooling() -> Experiment:
    """The mean of the whole history, whatever the candidate: the floor of all models."""
    return _like_twin(search="all", pooling="mean", auxiliary="none")


def dare_dot() -> Experiment:
    """DARE searching by plain dot product, from attention rows that start wide."""
    # the identity prior: the first search already finds the events of the same item and category
    return _like_dare(score="dot").changed(fields=FieldWidths(attention_init_std=1.0))


def dare_separation() -> Experiment:
    """DARE whose head crosses all fields and interests in each dimension apart (SECN)."""
    return _like_dare(head="crossing", crossing=PRESETS["secn_b_deep"]())


def dare_paper() -> Experiment:
    """DARE as published: history 200, full auxiliary, dot product.

    The tables' optimizer is row-wise Adagrad: the paper's dense Adam moves every row in each step.
    """
    return Experiment(
        model=RankerConfig(auxiliary="full", score="dot"),
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


def crossing(preset: str) -> Callable[[], Experiment]:
    """An experiment that crosses fields and reads no history, named after its network."""

    def experiment() -> Experiment:
        return Experiment(
            model=RankerConfig(
                sharing="shared",
                search="all",
                pooling="none",
                auxiliary="none",
                head="crossing",
                crossing=PRESETS[preset](),
            ),
            history_length=1,
        )

    experiment.__name__, experiment.__doc__ = preset, PRESETS[preset].__doc__
    return experiment


_LIFELONG: dict[str, Callable[[], Experiment]] = {
    function.__name__: function
    for function in (
        dare, twin, twin_without_tr, twin_hard, twin_projected, twin_projected_event, twin_three,
        twin_four, din, sim_hard, sim_soft, eta, sdim, twin_v2, target_attention, self_attention,
        mean_pooling,
        dare_dot, dare_separation, dare_paper, twin_paper,
    )
}  # fmt: skip
EXPERIMENTS = _LIFELONG | {name: crossing(name) for name in PRESETS}
