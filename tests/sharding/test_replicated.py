"""Replicated tables are updated as the fused kernels update theirs."""

from __future__ import annotations

import pytest
import torch

from sharding.apply import TableOptimizer, set_table_learning_rate, shard, sharded_collections
from sharding.cluster_plan import choose_plan
from sharding.plan import ShardingConfig
from sharding.replicated import held_shards
from tests.ranks import run_ranks
from tests.sharding.test_weighted_bags import SEED, Model, loss_and_gradients

WIDTHS = {"a": 8, "b": 4, "c": 8, "d": 4}
STEPS = 4


def trained(
    rank: int, world_size: int, kind: str, optimizer: str, last_rate: float
) -> dict[str, list]:
    """Table -> its rows after some steps, the last one at another learning rate."""
    model = Model(WIDTHS, "meta")
    plan = choose_plan(
        model, world_size=world_size, local_world_size=world_size, device_type="cpu",
        lookups_per_rank=50, config=ShardingConfig(kinds=(kind,)),
    )  # fmt: skip
    tables = TableOptimizer(kind=optimizer, learning_rate=0.1, eps=1e-3)
    sharded = shard(model, plan, optimizer=tables, device=torch.device("cpu"), seed=SEED)
    for step in range(STEPS):
        if step == STEPS - 1:
            set_table_learning_rate(sharded, last_rate)
        loss_and_gradients(sharded, step, rank, world_size)
    ((_, bags),) = sharded_collections(sharded)
    return {table: rows.tolist() for table, rows, _ in held_shards(bags.state_dict())}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_every_optimizer_moves_replicas_as_it_moves_whole_tables(optimizer: str) -> None:
    owners = run_ranks(trained, 2, "table_wise", optimizer, 0.05)
    whole = {table: rows for of_rank in owners for table, rows in of_rank.items()}
    for replicas in run_ranks(trained, 2, "data_parallel", optimizer, 0.05):
        assert replicas.keys() == whole.keys()
        for table, rows in replicas.items():
            torch.testing.assert_close(torch.tensor(rows), torch.tensor(whole[table]))


def test_a_learning_rate_changes_the_steps_of_replicas() -> None:
    slow, fast = (run_ranks(trained, 1, "data_parallel", "sgd", rate)[0] for rate in (1e-9, 1.0))
    moved = (torch.tensor(fast["t_a"]) - torch.tensor(slow["t_a"])).abs().max()
    assert moved > 1e-2
