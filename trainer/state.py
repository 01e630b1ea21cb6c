"""A model under training: sharded tables with fused optimizers, dense parameters with Adam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from data.batch import RankingBatch
from data.store import EventStore
from modules.loss import Losses, ranking_losses, regularized_parameters
from modules.ranker import RankerOutput
from sharding.apply import set_table_learning_rate, shard
from sharding.costs import WEIGHT_BYTES
from sharding.given_plan import given_plan
from sharding.narrow import hold_narrow_tables
from sharding.plan import describe_plan
from sharding.search_tables import (
    read_live_tables,
    read_replica,
    refresh_replica,
    replica_parts,
)
from trainer.build import build_ranker
from trainer.experiment import Experiment
from trainer.planning.job import plan_for_job
from trainer.processes import Ranks


class NonFiniteLossError(ArithmeticError):
    """The loss of this rank's slice of a batch is no number, or infinite."""

    def __init__(self, losses: Losses | None) -> None:
        """``losses``: if known."""
        terms = losses._asdict().items() if losses else ()
        told = ", ".join(f"{name} {float(value):g}" for name, value in terms)
        super().__init__(f" ({told})" if told else "")


@dataclass
class TrainState:
    """All that changes while training, but for the position."""

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    dense: KeyedOptimizerWrapper
    regularized: list[Tensor]
    """Parameters under the L2 penalty; to find them takes a hundredth of a step."""
    plan: dict[str, Any]
    """What ``RUN/plan.json`` holds."""

    def scale_learning_rates(self, experiment: Experiment, scale: float) -> None:
        """Sets those of tables and of all else to ``scale`` times the experiment's.

        They are no part of ``to_save``: what saves a state has to keep the scale.
        """
        for group in self.dense.param_groups:
            group["lr"] = scale * experiment.dense_learning_rate
        set_table_learning_rate(self.model, scale * experiment.tables.learning_rate)

    def to_save(self, *, replica: bool = False) -> dict[str, Any]:
        """For DCP.

        Args:
            replica: also the searches' copy of the keys: it is older than the tables.
        """
        copies = {"replica": copied} if replica and (copied := replica_parts(self.model)) else {}
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return states | copies

    def to_load(self, saved: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Of the shape of what was saved: DCP fills it in place.

        Args:
            saved: name -> DCP's metadata of what there is. The copy of the keys is read if it is
                there as this plan holds it.
        """
        if not self.dense.state_dict()["state"]:
            # Adam has no slots before its first step, and DCP fills only slots that exist
            for parameter in self.dense.params.values():
                parameter.grad = torch.zeros_like(parameter)
            self.dense.step()
            self.dense.zero_grad()
        found = {
            name: saved[f"replica.{name}"].size == part.size()
            for name, part in replica_parts(self.model).items()
            if f"replica.{name}" in saved
        }
        return self.to_save(replica=bool(found) and all(found.values()))

    def loaded(self, state: dict[str, Any]) -> None:
        """Takes over what DCP filled."""
        self.model.load_state_dict(state["model"])
        if "replica" not in state:
            refresh_replica(self.model)
        self.optimizer.load_state_dict(state["optimizer"])


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
        plan = plan_for_job(ranker, experiment, store, ranks)
    else:
        plan = given_plan(ranker, given["tables"], **on)
    described = describe_plan(
        ranker,
        plan,
        world_size=ranks.world_size,
        optimizer=experiment.tables.kind,
        weight_bytes=WEIGHT_BYTES[experiment.tables.dtype],
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
    return TrainState(
        model,
        CombinedOptimizer([model.fused_optimizer, dense]),
        dense,
        regularized_parameters(model),
        described,
    )


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

    Raises:
        NonFiniteLossError: on CPUs, before anything is changed. On a GPU to look would be to wait
            for it: the meter does at the next line of metrics.jsonl.
    """
    _seed_dropout((batch.seed + dist.get_rank()) % 2**63, batch.labels.device)
    losses = ranking_losses(
        forward(state.model, batch),
        batch.labels,
        state.regularized,
        num_candidates=batch.global_candidates / world_size,
        auxiliary_weight=experiment.auxiliary_weight,
        l2=experiment.l2,
    )
    total = losses.total()
    if total.device.type == "cpu" and not total.isfinite():
        raise NonFiniteLossError(losses)
    state.dense.zero_grad()
    total.backward()
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
