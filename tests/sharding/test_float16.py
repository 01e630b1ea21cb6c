"""Tables of float16: what float32 ones compute, but for the rounding of what is held."""

from __future__ import annotations

import pytest
import torch
from torchrec.optim import RowWiseAdagrad

from modules.bags import initialize_tables_
from sharding.apply import TableOptimizer, kinds_for, shard, sharded_collections
from sharding.cluster_plan import choose_plan
from sharding.errors import PlanError
from sharding.plan import ShardingConfig
from sharding.replicated import held_shards
from tests.ranks import run_ranks
from tests.sharding.test_weighted_bags import SEED, Model, parts_of

WIDTHS = {"a": 8, "b": 4, "c": 8, "d": 4}
STEPS, LEARNING_RATE, EPS = 4, 0.1, 1e-3
ROUNDING = 2.0**-11
"""Half a unit of the last of 11 bits."""


def step(model: torch.nn.Module, number: int, rank: int, scale: float) -> list[float]:
    """The gradients of the weights."""
    parts = [(ids, weights.requires_grad_()) for ids, weights in parts_of(number, rank)]
    (scale * sum(sums.sin().sum() for sums in model(parts))).backward()
    return torch.cat([w.grad.flatten() / scale for _, w in parts]).tolist()


def in_half(rank: int, world_size: int, kind: str) -> tuple[list, list]:
    model = Model(WIDTHS, "meta")
    plan = choose_plan(
        model, world_size=world_size, local_world_size=world_size, device_type="cpu",
        lookups_per_rank=50, config=ShardingConfig(kinds=(kind,)),
    )  # fmt: skip
    optimizer = TableOptimizer(learning_rate=LEARNING_RATE, eps=EPS, dtype="float16")
    sharded = shard(model, plan, optimizer=optimizer, device=torch.device("cpu"), seed=SEED)
    gradients = [step(sharded, number, rank, world_size) for number in range(STEPS)]
    ((_, bags),) = sharded_collections(sharded)
    held = held_shards(bags.state_dict())
    assert {rows.dtype for _, rows, _ in held} == {torch.float16}
    return gradients, [(table, offset, rows.tolist()) for table, rows, offset in held]


@pytest.mark.parametrize(("world_size", "kind"), [(1, "table_wise"), (2, "row_wise")])
def test_lookups_gradients_and_updates_are_those_of_float32(world_size: int, kind: str) -> None:
    model = Model(WIDTHS, "cpu")
    initialize_tables_(model, SEED)
    weights = {name.split(".")[-2]: weight for name, weight in model.named_parameters()}
    adagrad = RowWiseAdagrad(weights.values(), lr=LEARNING_RATE, eps=EPS)
    expected: list[list] = [[] for _ in range(world_size)]
    for number in range(STEPS):
        for rank in range(world_size):
            expected[rank].append(step(model, number, rank, 1))
        adagrad.step()
        adagrad.zero_grad()
    ranks = run_ranks(in_half, world_size, kind)
    # start and each of the steps round the rows; a sum is of five rows, 8 wide at most
    near = (STEPS + 1) * ROUNDING * max(w.abs().max().item() for w in weights.values())
    for (gradients, held), wanted in zip(ranks, expected, strict=True):
        for found, right in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(
                torch.tensor(found), torch.tensor(right), rtol=0, atol=5 * near
            )
        for table, (row, _), rows in held:
            found = torch.tensor(rows)
            whole = weights[table][row : row + len(found)].detach()
            torch.testing.assert_close(found, whole, rtol=0, atol=near)


def test_replicas_are_of_float32_tables_without_decay_or_adam() -> None:
    default = ShardingConfig()
    assert kinds_for(TableOptimizer(), default) is default
    for settings in ({"dtype": "float16"}, {"kind": "adam"}, {"weight_decay": 0.1}):
        optimizer = TableOptimizer(**settings)
        assert kinds_for(optimizer, default).kinds == ("table_wise", "row_wise")
        for wanted in ({"kinds": ("data_parallel",)}, {"table_kinds": {"a": "data_parallel"}}):
            with pytest.raises(PlanError, match="data_parallel tables go with"):
                kinds_for(optimizer, ShardingConfig(**wanted))


def test_a_type_that_fbgemm_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of float32, float16; got 'bfloat16'"):
        TableOptimizer(dtype="bfloat16")
