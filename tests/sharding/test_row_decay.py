"""L2 of the rows that a step looks up, and learning rates that change, in the fused kernels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from modules.bags import look_up, make_collection, one_each
from sharding.apply import (
    TableOptimizer,
    lookup_shares,
    set_table_learning_rate,
    shard,
    sharded_collections,
)
from sharding.cluster_plan import choose_plan
from sharding.plan import ShardingConfig
from tests.ranks import run_ranks

ROWS, WIDTH, DECAY, EPS, RATE = 6, 4, 0.5, 1e-4, 0.1
STEPS: list[dict[str, list[int]]] = [
    # row 1 three times, once in the second half; row 5 never
    {"item": [1, 1, 2, 0, 1, 4], "shop": [0, 3, 3, 3, 2, 2]},
    {"item": [2, 2, 2, 2, 2, 3], "shop": [1, 1, 0, 0, 1, 1]},
]
COEFFICIENTS = np.random.default_rng(0).normal(size=(len(STEPS), 6, 2 * WIDTH))

Rows = dict[str, np.ndarray]


class TwoTables(nn.Module):
    """A table of items and one of shops."""

    def __init__(self, *, weighted: bool = False) -> None:
        super().__init__()
        tables = {name: (name.removeprefix("t_"), ROWS, WIDTH) for name in ("t_item", "t_shop")}
        self.tables = make_collection(tables, torch.device("meta"), weighted)
        self.init_std = dict.fromkeys(tables, 1.0)
        self.weight = nn.Parameter(torch.zeros(1))  # DistributedDataParallel wants one

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        return look_up(self.tables, one_each(ids)) + 0 * self.weight


def build(world_size: int, kind: str, optimizer: TableOptimizer, *, weighted: bool = False) -> Any:
    model = TwoTables(weighted=weighted)
    plan = choose_plan(
        model,
        world_size=world_size,
        local_world_size=world_size,
        device_type="cpu",
        lookups_per_rank=10,
        config=ShardingConfig(kinds=(kind,)),
    )
    return shard(model, plan, optimizer=optimizer, device=torch.device("cpu"), seed=3)


def step(model: nn.Module, number: int, rank: int, world_size: int) -> None:
    """Backward of the sum of rows times coefficients, over ranks of unequal shares."""
    begin, end = (0, 6) if world_size == 1 else ((0, 4), (4, 6))[rank]
    ids = {name: torch.tensor(column[begin:end]) for name, column in STEPS[number].items()}
    coefficients = torch.tensor(COEFFICIENTS[number, begin:end], dtype=torch.float32)
    # TorchRec averages over ranks
    (model(ids) * coefficients * world_size).sum().backward()


def held(model: nn.Module) -> list[tuple[str, int, list[list[float]]]]:
    """Table, first row and rows of all that this rank holds."""
    return [
        (name.split(".")[-2], part.metadata.shard_offsets[0], part.tensor.tolist())
        for _, bags in sharded_collections(model)
        for name, weight in bags.state_dict().items()
        for part in weight.local_shards()
    ]


def gathered(answers: list[list[tuple[str, int, list[list[float]]]]]) -> Rows:
    tables = {name: np.full((ROWS, WIDTH), np.nan) for name in ("t_item", "t_shop")}
    for name, first, rows in itertools.chain(*answers):
        tables[name][first : first + len(rows)] = rows
    return tables


def trained(world_size: int, kind: str, optimizer: TableOptimizer, steps: int = 2) -> Rows:
    def run(rank: int, world_size: int) -> Any:
        model = build(world_size, kind, optimizer)
        for number in range(steps):
            step(model, number, rank, world_size)
        return held(model)

    return gathered(run_ranks(run, world_size))


def by_hand(start: Rows, kind: str) -> Rows:
    """The same steps in float64."""
    tables = {name: rows.copy() for name, rows in start.items()}
    for place, (name, rows) in enumerate(tables.items()):
        squares = np.zeros((ROWS, WIDTH))
        for ids, coefficients in zip(STEPS, COEFFICIENTS, strict=True):
            gradient = np.zeros((ROWS, WIDTH))
            column = ids[name.removeprefix("t_")]
            np.add.at(gradient, column, coefficients[:, place * WIDTH : (place + 1) * WIDTH])
            seen = np.unique(column)
            gradient[seen] += DECAY * rows[seen]
            square = gradient**2
            squares += square.mean(1, keepdims=True) if kind == "rowwise_adagrad" else square
            scale = 1 if kind == "sgd" else np.sqrt(squares) + EPS
            rows -= RATE * gradient / scale
    return tables


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise"])
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad", "sgd"])
def test_rows_looked_up_decay_as_computed_by_hand(
    kind: str, sharding: str, world_size: int
) -> None:
    optimizer = TableOptimizer(kind=kind, learning_rate=RATE, eps=EPS, weight_decay=DECAY)
    start = trained(1, "table_wise", optimizer, steps=0)
    found = trained(world_size, sharding, optimizer)
    for name, expected in by_hand(start, kind).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    assert (found["t_item"][5] == start["t_item"][5]).all()  # not looked up


def test_without_decay_nothing_is_hooked_to_the_kernels() -> None:
    def hooks(rank: int, world_size: int) -> list[int]:
        return [
            len(kernel._forward_hooks)
            for decay in (0.0, DECAY)
            for _, bags in sharded_collections(
                build(1, "table_wise", TableOptimizer(weight_decay=decay))
            )
            for lookup in bags._lookups
            for kernel in lookup._emb_modules
        ]

    assert run_ranks(hooks, 1) == [[0, 1]]


def test_a_row_counts_once_however_often_it_is_looked_up_and_tables_count_apart() -> None:
    ids = KeyedJaggedTensor(
        keys=["item", "shop"],
        # bags     7   -   7   7      7   2   2   -
        values=torch.tensor([7, 7, 7, 7, 2, 2]),
        lengths=torch.tensor([1, 0, 1, 1, 1, 1, 1, 0]),
    )
    shares = lookup_shares(ids, torch.tensor([0, 10]))
    third = 1 / 3
    expected = [[third, 1.0], [0.0, 0.5], [third, 0.5], [third, 0.0]]
    torch.testing.assert_close(shares, torch.tensor(expected))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_a_learning_rate_that_changes_changes_the_step_of_the_kernel(
    kind: str, world_size: int
) -> None:
    def run(rank: int, world_size: int) -> Any:
        model = build(world_size, kind, TableOptimizer(kind="sgd", learning_rate=1.0))
        tables = [held(model)]
        for rate in (1.0, 0.1):
            set_table_learning_rate(model, rate)
            step(model, 0, rank, world_size)
            tables.append(held(model))
        return tables

    answers = run_ranks(run, world_size)
    first, second, third = (gathered([answer[i] for answer in answers]) for i in range(3))
    for name in first:
        moved = second[name] - first[name]
        assert np.abs(moved).max() > 0.1
        np.testing.assert_allclose(third[name] - second[name], 0.1 * moved, atol=1e-6)


def test_a_negative_decay_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_decay must be a number from 0 up, got -1"):
        TableOptimizer(weight_decay=-1)


def test_tables_that_sum_rows_know_no_decay() -> None:
    def refuse(rank: int, world_size: int) -> None:
        with pytest.raises(ValueError, match="sums_rows=False"):
            build(1, "table_wise", TableOptimizer(weight_decay=DECAY), weighted=True)

    run_ranks(refuse, 1)
