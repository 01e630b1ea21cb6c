"""Sharded sums of rows by weights, and all their gradients, are those of ``nn.EmbeddingBag``."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.bags import Ids, initialize_tables_, look_up_sums, make_collection
from sharding.apply import TableOptimizer, shard, sharded_collections
from sharding.cluster_plan import choose_plan
from sharding.narrow import hold_narrow_tables
from sharding.plan import ShardingConfig
from tests.ranks import run_ranks

ROWS = {"a": 30, "b": 10, "c": 17, "d": 8}
LEARNING_RATE, SEED, STEPS = 0.1, 11, 3
# a table 256 wide is cut by columns; TorchRec cuts none below 128
PLANS: list[dict[str, Any]] = [
    {"kinds": ("table_wise",)},
    {"kinds": ("row_wise",)},
    {"kinds": ("table_wise", "column_wise"), "table_kinds": {"t_a": "column_wise"}},
    {"kinds": ("table_wise",), "table_kinds": {"t_a": "column_wise", "t_c": "row_wise"}},
    {"kinds": ("data_parallel",)},
    {"kinds": ("table_wise",), "table_kinds": {"t_b": "data_parallel", "t_c": "row_wise"}},
]


class Model(nn.Module):
    """Weighted sums of rows, some by weights that are learned."""

    def __init__(self, widths: dict[str, int], device: str) -> None:
        super().__init__()
        tables = {f"t_{name}": (name, ROWS[name], width) for name, width in widths.items()}
        self.init_std = dict.fromkeys(tables, 0.5)
        self.tables = make_collection(tables, torch.device(device), weighted=True)

    def forward(self, parts: list[tuple[Ids, Tensor]]) -> list[Tensor]:
        return look_up_sums(self.tables, parts)


def parts_of(step: int, rank: int) -> list[tuple[Ids, Tensor]]:
    """Bags of five and of one; duplicates in plenty. The second rank has none of five, and none at
    all in the second step.
    """
    draw = torch.Generator().manual_seed(10 * step + rank)
    found = []
    for n, k in ((0 if rank == 1 else 3 + rank, 5), (0 if rank == step == 1 else 2, 1)):
        ids = {name: torch.randint(8, (n, k), generator=draw) for name in ROWS}
        found.append((ids, torch.randn(n, k, generator=draw)))
    return found


def loss_and_gradients(model: nn.Module, step: int, rank: int, scale: float) -> list[list]:
    """The loss, and the gradient of ``scale`` times the loss for all weights, divided by it."""
    parts = [(ids, weights.requires_grad_()) for ids, weights in parts_of(step, rank)]
    loss = sum(sums.sin().sum() for sums in model(parts))
    (loss * scale).backward()
    return [[loss.item()], *((w.grad / scale).flatten().tolist() for _, w in parts)]


def outputs(model: nn.Module, rank: int) -> list[list]:
    with torch.no_grad():
        return [sums.flatten().tolist() for sums in model(parts_of(STEPS, rank))]


def sharded(rank: int, world_size: int, widths: dict[str, int], plan: dict[str, Any]) -> tuple:
    model = Model(widths, "meta")
    hold_narrow_tables(model)
    chosen = choose_plan(
        model,
        world_size=world_size,
        local_world_size=world_size,
        device_type="cpu",
        lookups_per_rank=50,
        config=ShardingConfig(**plan),
    )
    optimizer = TableOptimizer(kind="sgd", learning_rate=LEARNING_RATE)
    model = shard(model, chosen, optimizer=optimizer, device=torch.device("cpu"), seed=SEED)
    # TorchRec divides the gradients of rows by the number of ranks: those of a mean over ranks
    found = [loss_and_gradients(model, step, rank, world_size) for step in range(STEPS)]
    ((_, bags),) = sharded_collections(model)
    kinds = {sharding.sharding_type for sharding in bags.module_sharding_plan.values()}
    return [*found, outputs(model, rank)], kinds


def whole(world_size: int, widths: dict[str, int]) -> list[list]:
    """The same by one process, which sees the batches of all ranks."""
    model = Model(widths, "cpu")
    initialize_tables_(model, SEED)
    sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    found: list[list] = [[] for _ in range(world_size)]
    for step in range(STEPS):
        for rank in range(world_size):
            found[rank].append(loss_and_gradients(model, step, rank, 1))
        sgd.step()
        sgd.zero_grad()
    return [[*of_rank, outputs(model, rank)] for rank, of_rank in enumerate(found)]


def assert_equal(world_size: int, widths: dict[str, int], plan: dict[str, Any]) -> None:
    ranks = run_ranks(sharded, world_size, widths, plan)
    for (found, kinds), expected in zip(ranks, whole(world_size, widths), strict=True):
        assert kinds == {*plan["kinds"], *plan.get("table_kinds", {}).values()}
        for numbers, wanted in zip(chain(*found), chain(*expected), strict=True):
            torch.testing.assert_close(
                torch.tensor(numbers), torch.tensor(wanted), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan.values())))
def test_sums_and_gradients_are_those_of_unsharded_tables(
    plan: dict[str, Any], world_size: int
) -> None:
    assert_equal(world_size, {"a": 256, "b": 4, "c": 8, "d": 4}, plan)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_rows_held_several_times_count_once_for_a_weight(kind: str) -> None:
    assert_equal(2, {"a": 1, "b": 4, "c": 2, "d": 8}, {"kinds": (kind,)})
