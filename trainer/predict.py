"""Predictions of a split over all ranks, and what the report wants to know of them.

Shapes: S candidates, K chosen events.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel

from analysis.probes import ReplicaProbe, SearchProbe
from data.batch import RankingBatch
from data.loader import RequestLoader
from data.source import Split
from data.store import EventStore
from modules.ranker import LifelongRanker, RankerOutput
from sharding.apply import sharded_collections
from sharding.search_tables import refresh_replica
from trainer.experiment import Experiment
from trainer.metrics import Predictions
from trainer.processes import Ranks, gather_rows
from trainer.state import forward

PROBE_REQUESTS = 500
"""Requests of a look at an untrained search, or at a search in a copy of the keys."""


class AttentionByRecency:
    """Mean attention weight by recency rank, learned and as if all events weighed the same."""

    def __init__(self, history_length: int, device: torch.device) -> None:
        self.weight = torch.zeros(history_length + 1, dtype=torch.float64, device=device)
        self.with_length = torch.zeros_like(self.weight)
        """Candidates by the length of their history."""

    def update(self, output: RankerOutput, batch: RankingBatch) -> None:
        """Adds a batch."""
        size = len(self.weight)
        self.weight += torch.bincount(
            output.recency.flatten(), output.weights.flatten().double(), minlength=size
        )
        lengths = batch.history_lengths.repeat_interleave(batch.candidate_counts)
        self.with_length += torch.bincount(lengths, minlength=size).to(self.with_length.device)

    def to_json(self) -> dict[str, list[float]]:
        """Sums over all ranks: collective."""
        dist.all_reduce(self.weight)
        dist.all_reduce(self.with_length)
        recency = torch.arange(1, len(self.weight), device=self.weight.device)
        share = self.with_length[1:] / recency
        with_history = self.with_length[1:].sum().clamp(min=1)
        uniform = share.flip(0).cumsum(0).flip(0) / with_history
        return {
            "recency": recency.tolist(),
            "weight": (self.weight[1:] / with_history).tolist(),
            "uniform": uniform.tolist(),
        }


def evaluation_loader(
    store: EventStore, split: Split, experiment: Experiment, ranks: Ranks
) -> RequestLoader:
    """The requests of a split in the store's order.

    Raises:
        InputError: none there, or too few for so many ranks.
    """
    return RequestLoader(
        store,
        split,
        requests_per_batch=experiment.requests_per_batch,
        history_length=experiment.history_length,
        time_gap=experiment.time_gap,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=False,
    )


@torch.no_grad()
def predict(
    model: nn.Module,
    store: EventStore,
    split: Split,
    experiment: Experiment,
    ranks: Ranks,
    *,
    change: Callable[[RankingBatch], RankingBatch] = lambda batch: batch,
    each_batch: Callable[[RankerOutput, RankingBatch], None] = lambda output, batch: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Scores every candidate of a split once. Collective; every rank gets all predictions.

    Args:
        change: makes of each batch the one that is scored; what happened is that of the first.
        each_batch: sees each output of this rank with its batch.
        progress: told of the batches done and their number.
    """
    loader = evaluation_loader(store, split, experiment, ranks)
    model.eval()
    refresh_replica(model)
    rows: list[Tensor] = []
    for done, batch in enumerate(loader, start=1):
        batch = batch.to(ranks.device)
        output = forward(model, change(batch))
        each_batch(output, batch)
        rows.append(_rows(output, batch))
        progress(done, len(loader))
    model.train()
    probability, label, user, request = gather_rows(torch.cat(rows)).cpu().numpy().T
    order = np.argsort(request, kind="stable")  # the same at every world size
    return Predictions(
        probability[order],
        label[order].astype(np.int8),
        user[order].astype(np.int64),
        request[order].astype(np.int64),
    )


@torch.no_grad()
def probe_search(
    model: DistributedModelParallel,
    store: EventStore,
    split: Split,
    experiment: Experiment,
    ranks: Ranks,
) -> dict[str, Any]:
    """What the search finds on the first ``PROBE_REQUESTS`` requests of a split. Collective."""
    probe = SearchProbe(model.module, ranks.device)
    refresh_replica(model)
    for output, batch in _first_outputs(model, store, split, experiment, ranks):
        probe.update(output, batch)
    return probe.to_json()


@torch.no_grad()
def probe_replica(
    model: DistributedModelParallel,
    store: EventStore,
    split: Split,
    experiment: Experiment,
    ranks: Ranks,
) -> float | None:
    """Of what live keys find on the same requests, the share that searches find in their copy, as
    old as it is. Collective.
    """
    probe = ReplicaProbe(model.module, ranks.device)
    for _ in _first_outputs(model, store, split, experiment, ranks):
        pass
    return probe.close()


def _first_outputs(
    model: DistributedModelParallel,
    store: EventStore,
    split: Split,
    experiment: Experiment,
    ranks: Ranks,
) -> Iterator[tuple[RankerOutput, RankingBatch]]:
    """Of the first ``PROBE_REQUESTS`` requests of a split, those of this rank."""
    batches = math.ceil(PROBE_REQUESTS / experiment.requests_per_batch)
    model.eval()
    for batch in itertools.islice(evaluation_loader(store, split, experiment, ranks), batches):
        batch = batch.to(ranks.device)
        yield forward(model, batch), batch
    model.train()


def _rows(output: RankerOutput, batch: RankingBatch) -> Tensor:
    """(S, 4) float64, which holds ids below 2^53 exactly: one gather instead of four."""
    columns = (
        output.logits.double().sigmoid(),
        batch.labels,
        batch.context["user"].values()[batch.request_of],
        batch.request_ids[batch.request_of],
    )
    return torch.stack([column.double() for column in columns], dim=1)


class LookupCounter:
    """Counts the rows that a model looks up, with and without gradient."""

    def __init__(
        self, ranker: LifelongRanker, before: Mapping[str, list[int]] = MappingProxyType({})
    ) -> None:
        """``before``: what ``counted`` said when the run was stopped."""
        self._before = before
        self._counts: dict[str, list[int]] = {}
        self._hooks = [
            bags.register_forward_pre_hook(self._count, prepend=True)
            for _, bags in sharded_collections(ranker)
        ]
        self._whole = ranker.tables.whole if ranker.reads_history else {}
        self._add_read(-1)

    def _count(self, bags: Any, args: tuple[Any]) -> None:
        (ids,) = args
        for table in bags.module_sharding_plan:
            counts = self._counts.setdefault(table, [0, 0])
            counts[torch.is_grad_enabled()] += ids.values().numel() // len(ids.keys())

    def _add_read(self, sign: int) -> None:
        """All that was read of whole tables until now, past the sharded collections."""
        for collection, tables in self._whole.items():
            for name, rows in tables.rows_read.items():
                self._counts.setdefault(f"{collection}_{name}", [0, 0])[0] += sign * rows

    def counted(self, device: torch.device) -> dict[str, list[int]]:
        """Rows of each table until now, without and with gradient, of all ranks. Collective."""
        self._add_read(1)
        totals = torch.tensor(list(self._counts.values()), device=device)
        self._add_read(-1)
        dist.all_reduce(totals)
        return {
            name: [
                now + before
                for now, before in zip(rows, self._before.get(name, [0, 0]), strict=True)
            ]
            for name, rows in zip(self._counts, totals.tolist(), strict=True)
        }

    def close(self, steps: int, device: torch.device) -> dict[str, dict[str, float]]:
        """Stops counting; rows of each table per step, all ranks together. Collective."""
        counted = self.counted(device)
        for hook in self._hooks:
            hook.remove()
        return {
            name: {"with_gradient": with_gradient / steps, "without_gradient": without / steps}
            for name, (without, with_gradient) in counted.items()
        }
