"""Collectives of a step: as the plan counts them, and as two gloo ranks make them."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data.loader import RequestLoader
from data.prepare import prepare
from data.sources.criteo import Criteo
from data.store import EventStore
from sharding.catalogue import Cluster, load_nodes
from sharding.collectives import Calls
from sharding.plan import ShardingConfig
from tests.data.flat_logs import criteo_rows, write_criteo
from tests.ranks import run_ranks
from tests.trainer.small_runs import EXPERIMENT, ranks_of
from trainer.experiment import Experiment, FieldWidths
from trainer.experiments import EXPERIMENTS
from trainer.planning.log import Log
from trainer.planning.predict import Situation, describe
from trainer.planning.rank_speeds import call_ms
from trainer.state import build_state, train_step

WARM = 3
"""Steps before the one that is counted: DDP arranges its buckets anew after the first."""
EXCHANGES = ("c10d::alltoall_base_", "c10d::_allgather_base_")
SUMS = ("c10d::allreduce_", "c10d::_reduce_scatter_base_")


def predicted(experiment: Experiment, store: Path, node: str = "CPU-SPR") -> dict[str, Any]:
    """The entry of plan.json for two ranks."""
    log = Log.of_store(EventStore.open(store))
    situation = Situation.of(experiment, log, Cluster(1, 2, load_nodes()[node]))
    return describe(situation, situation.plan(), None, host=False, reasons=False)


def made(experiment: Experiment, store: Path, plan: dict[str, Any]) -> list[dict[str, int]]:
    """What torch's profiler sees of one step, on each rank."""

    def main(rank: int, world_size: int) -> dict[str, int]:
        opened = EventStore.open(store)
        state = build_state(experiment, opened, ranks_of(rank, world_size), plan)
        loader = RequestLoader(
            opened,
            "train",
            requests_per_batch=experiment.requests_per_batch,
            history_length=experiment.history_length,
            rank=rank,
            world_size=world_size,
            prefetch=0,
        )
        *before, last = itertools.islice(loader, WARM + 1)
        for batch in before:
            train_step(state, batch, experiment, world_size)
        with torch.profiler.profile() as profile:
            train_step(state, last, experiment, world_size)
        seen = Counter(event.name for event in profile.events())
        other = [n for n in seen if n.startswith("c10d::") and n not in (*EXCHANGES, *SUMS)]
        assert not other, other
        return {
            "all_to_all": sum(seen[name] for name in EXCHANGES),
            "all_reduce": sum(seen[name] for name in SUMS),
        }

    return run_ranks(main, 2)


def sharded(experiment: Experiment, *kinds: str, **tables: str) -> Experiment:
    """By these sharding types; without any as the planner likes."""
    config = ShardingConfig(kinds=kinds or ShardingConfig().kinds, table_kinds=tables)
    return experiment.changed(sharding=config, requests_per_batch=24, history_length=16)


def like(name: str, **model: Any) -> Experiment:
    experiment = EXPERIMENTS[name]()
    return experiment.changed(model=dataclasses.replace(experiment.model, **model))


DARE, TWIN = EXPERIMENTS["dare"](), EXPERIMENTS["twin"]()
WIDE = TWIN.changed(fields=FieldWidths(attention_dim=256, representation_dim=256))
MIXED = {"attention_item": "row_wise", "attention_category": "data_parallel"}
CASES = {
    "dare, as planned": sharded(DARE),
    "dare, whole": sharded(DARE, "table_wise"),
    "dare, row-wise": sharded(DARE, "row_wise"),
    "dare, mixed": sharded(DARE, "table_wise", **MIXED),
    "dare, with a copy": sharded(DARE.changed(replica_steps=10**6), "table_wise"),
    "a large head": sharded(like("dare", hidden=(4096, 1700)), "table_wise"),
    "sampled, whole": sharded(EXPERIMENT, "table_wise"),
    "twin, replicated": sharded(TWIN, "data_parallel"),
    "twin, columns": sharded(WIDE, "column_wise"),
    "full auxiliary, whole": sharded(EXPERIMENTS["dare_paper"](), "table_wise"),
    "clusters, replicated": sharded(EXPERIMENTS["twin_v2"](), "data_parallel"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_step_makes_as_many_collectives_as_its_plan_counts(name: str, store: Path) -> None:
    plan = predicted(CASES[name], store)
    assert made(CASES[name], store, plan) == [plan["step"]["calls"]] * 2


def test_calls_are_what_two_tiny_steps_take_beyond_the_overhead_of_one_rank() -> None:
    # 6 + 5 x 2 = 16 ms; 6 + 3 x 2 + 16 x 0.5 = 20 ms
    assert call_ms(Calls(0, 5), Calls(16, 3), 16.0, 20.0, overhead=6.0) == (0.5, 2.0)
    # noise: both are quicker than the overhead
    assert call_ms(Calls(0, 5), Calls(16, 3), 5.0, 4.0, overhead=6.0) == (0.025, 0.1)


@pytest.mark.parametrize("kind", ["table_wise", "data_parallel"])
def test_so_does_one_of_a_flat_model(kind: str, tmp_path: Path) -> None:
    file = write_criteo(tmp_path / "train.txt", criteo_rows(300))
    prepare(Criteo(path=(file,), preparation="x1"), tmp_path / "store")
    experiment = sharded(EXPERIMENTS["deepfm"](), kind)
    plan = predicted(experiment, tmp_path / "store")
    assert made(experiment, tmp_path / "store", plan) == [plan["step"]["calls"]] * 2
