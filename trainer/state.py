"""A model under training: sharded tables with fused optimizers, dense parameters with Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from data.batch import RankingBatch
from data.errors import InputError
from data.store import EventStore
from modules.context import ContextConfig
from modules.loss import Losses, ranking_losses
from modules.ranker import LifelongRanker, RankerOutput
from modules.tables import FieldConfig
from sharding.apply import set_table_learning_rate, shard
from sharding.given_plan import given_plan
from sharding.narrow import hold_narrow_tables
from sharding.plan import choose_plan, describe_plan
from sharding.search_tables import read_live_tables, read_replica, refresh_replica
from trainer.experiment import Experiment
from trainer.processes import Ranks


@dataclass
class TrainState:
    """All that changes while training, but for the position."""

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    dense: KeyedOptimizerWrapper
    plan: dict[str, Any]
    """What ``RUN/plan.json`` holds."""

    def scale_learning_rates(self, experiment: Experiment, scale: float) -> None:
        """Sets those of tables and of all else to ``scale`` times the experiment's.

        They are no part of ``to_save``: what saves a state has to keep the scale.
        """
        for group in self.dense.param_groups:
            group["lr"] = scale * experiment.dense_learning_rate
        set_table_learning_rate(self.model, scale * experiment.tables.learning_rate)

    def to_save(self) -> dict[str, Any]:
        """For DCP."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def to_load(self) -> dict[str, Any]:
        """Of the shape of what was saved: DCP fills it in place."""
        if not self.dense.state_dict()["state"]:
            # Adam has no slots before its first step, and DCP fills only slots that exist
            for parameter in self.dense.params.values():
                parameter.grad = torch.zeros_like(parameter)
            self.dense.step()
            self.dense.zero_grad()
        return self.to_save()

    def loaded(self, state: dict[str, Any]) -> None:
        """Takes over what DCP filled."""
        self.model.load_state_dict(state["model"])
        refresh_replica(self.model)
        self.optimizer.load_state_dict(state["optimizer"])


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


def plan_ranker(
    ranker: LifelongRanker,
    experiment: Experiment,
    store: EventStore,
    *,
    world_size: int,
    local_world_size: int,
    device_type: str,
) -> tuple[ShardingPlan, dict[str, Any]]:
    """The sharding plan, for TorchRec and as JSON."""
    requests = math.ceil(experiment.requests_per_batch / world_size)
    candidates = requests * store.info.candidates["train"] / store.info.requests["train"]
    plan = choose_plan(
        ranker,
        world_size=world_size,
        local_world_size=local_world_size,
        device_type=device_type,
        lookups_per_rank=math.ceil(
            candidates * (1 + experiment.model.attended) + requests * experiment.history_length
        ),
        config=experiment.sharding,
    )
    described = describe_plan(ranker, plan, world_size=world_size, optimizer=experiment.tables.kind)
    return plan, described


def build_state(
    experiment: Experiment,
    store: EventStore,
    ranks: Ranks,
    given: Mapping[str, Any] | None = None,
) -> TrainState:
    """A sharded model at its start, with its optimizers.

    Args:
        experiment: what to train.
        store: on what.
        ranks: who this process is.
        given: a plan of a cluster, from plan.json; None: the planner chooses.

    Raises:
        PlanError: no plan fits, or the given one is of other tables.
    """
    ranker = build_ranker(experiment, store, world_size=ranks.world_size)
    hold_narrow_tables(ranker)
    on = {
        "world_size": ranks.world_size,
        "local_world_size": ranks.local_world_size,
        "device_type": ranks.device.type,
    }
    if given is None:
        plan, described = plan_ranker(ranker, experiment, store, **on)
    else:
        plan = given_plan(ranker, given["tables"], **on)
        described = describe_plan(
            ranker, plan, world_size=ranks.world_size, optimizer=experiment.tables.kind
        )
    model = shard(
        ranker, plan, optimizer=experiment.tables, device=ranks.device, seed=experiment.seed
    )
    if ranker.reads_history and experiment.replica_steps:
        read_replica(ranker, experiment.replica_dtype, ranks.device)
    elif ranker.reads_history:
        read_live_tables(ranker)
    dense = KeyedOptimizerWrapper(
        _trained(in_backward_optimizer_filter(model.named_parameters())),
        lambda parameters: torch.optim.Adam(
            parameters, lr=experiment.dense_learning_rate, fused=True
        ),
    )
    return TrainState(model, CombinedOptimizer([model.fused_optimizer, dense]), dense, described)


def _trained(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Those that a gradient reaches. Adam has no slots for others, but would be given some before
    a checkpoint is read.
    """
    return {name: parameter for name, parameter in parameters if parameter.requires_grad}


def forward(model: torch.nn.Module, batch: RankingBatch) -> RankerOutput:
    """Scores the candidates of a batch."""
    return model(
        history=batch.history,
        candidates=batch.candidates,
        request_of=batch.request_of,
        request_ids=batch.request_ids,
        history_lengths=batch.history_lengths,
        candidate_counts=batch.candidate_counts,
        seed=batch.seed,
        context=batch.context,
        numbers=batch.numbers,
    )


def train_step(
    state: TrainState, batch: RankingBatch, experiment: Experiment, world_size: int
) -> Losses:
    """One step on this rank's slice of a global batch.

    Returns the terms of the loss: their mean over ranks is that of the global batch. The tables'
    fused optimizers act within the backward pass.
    """
    _seed_dropout((batch.seed + dist.get_rank()) % 2**63, batch.labels.device)
    losses = ranking_losses(
        forward(state.model, batch),
        batch.labels,
        state.model,
        num_candidates=batch.global_candidates / world_size,
        auxiliary_weight=experiment.auxiliary_weight,
        l2=experiment.l2,
    )
    state.dense.zero_grad()
    losses.total().backward()
    state.dense.step()
    return Losses(*(term.detach() for term in losses))


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Its draws depend on the place in training alone, as all others do.

    ``torch.manual_seed`` seeds every kind of device there might be, in 0.3 ms.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
