"""The model of an experiment for a log, without memory for its tables."""

from __future__ import annotations

from typing import Protocol

import torch

from data.errors import InputError
from modules.context import ContextConfig
from modules.ranker import LifelongRanker
from modules.tables import FieldConfig
from trainer.experiment import Experiment


class Schema(Protocol):
    """What a model has to know of a log: an EventStore says it, and a log that is yet to come."""

    @property
    def fields(self) -> list[tuple[str, int]]:
        """(name, num_embeddings) of the events' fields."""

    @property
    def context(self) -> list[tuple[str, int]]:
        """Of the requests' fields."""

    @property
    def numbers(self) -> list[str]:
        """Names of the requests' numbers."""

    @property
    def users(self) -> int:
        """How many."""

    @property
    def flat(self) -> bool:
        """Whether there are no histories."""


def build_ranker(experiment: Experiment, store: Schema, *, world_size: int = 1) -> LifelongRanker:
    """The model of an experiment for the fields of a store; its tables hold no memory yet.

    Raises:
        InputError: the experiment does not go with the store's fields.
    """
    torch.manual_seed(experiment.seed)
    try:
        events, context = fields_of(experiment, store)
        return LifelongRanker(
            experiment.model,
            events,
            torch.device("meta"),
            context,
            sums_rows=_sums_rows(experiment, world_size),
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _sums_rows(experiment: Experiment, world_size: int) -> bool:
    """Where rows cross between ranks; not where gradients of single rows are looked at.

    One rank alone would gain no traffic by it, and FBGEMM's gradient of the weights costs as much
    there as it saves (docs/performance.md).
    """
    rows_alone = experiment.tables.weight_decay or experiment.record_gradients
    return world_size > 1 and not rows_alone


def fields_of(
    experiment: Experiment, store: Schema
) -> tuple[tuple[FieldConfig, ...], ContextConfig]:
    """What the model sees of events and candidates, and of requests.

    Raises:
        ValueError: the experiment does not go with the store.
    """
    reads_history = experiment.model.pooling != "none"
    if store.flat and reads_history:
        raise ValueError(
            "This store's rows have no histories, but the experiment's model reads them. Take one "
            "that reads none: lr, fm, deepfm, dcn_v2, secn_b and others of twofold train --help."
        )
    events = experiment.fields.fields(
        store.fields,
        experiment.history_length,
        time_gap=experiment.time_gap,
        others=[*(name for name, _ in store.context), *store.numbers],
    )
    context = experiment.fields.context(store.context, store.numbers, store.users)
    if store.flat:  # its rows are all of one item, which says nothing
        events = ()
    elif not reads_history:  # what a candidate has none of: recency, action
        events = tuple(f for f in events if f.semantic)
    return events, context
