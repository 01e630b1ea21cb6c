"""A rank alone: its tables answer themselves, as they would after TorchRec's exchange."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.bags import look_up, look_up_sums, make_collection, one_each
from sharding.apply import TableOptimizer, shard, sharded_collections
from sharding.cluster_plan import choose_plan
from sharding.plan import ShardingConfig
from sharding.replicated import ReplicableBags
from tests.ranks import run_ranks

TABLES = {"t_a": ("a", 6, 4), "t_b": ("b", 7, 8)}
CPU = torch.device("cpu")


class Model(nn.Module):
    """Two tables, which hand out rows or sum them."""

    def __init__(self, *, weighted: bool) -> None:
        super().__init__()
        self.weighted = weighted
        self.tables = make_collection(TABLES, torch.device("meta"), weighted)
        self.init_std = dict.fromkeys(TABLES, 1.0)

    def forward(self, ids: dict[str, Tensor], weights: Tensor) -> Tensor:
        if not self.weighted:
            return look_up(self.tables, one_each({n: i.flatten() for n, i in ids.items()}))
        return look_up_sums(self.tables, [(ids, weights)])[0]


def build(kind: str, *, weighted: bool) -> Any:
    model = Model(weighted=weighted)
    plan = choose_plan(
        model,
        world_size=1,
        local_world_size=1,
        device_type="cpu",
        lookups_per_rank=10,
        config=ShardingConfig(kinds=(kind,)),
    )
    return shard(model, plan, optimizer=TableOptimizer(), device=CPU, seed=3)


def trained(order: list[str], rows: int, *, weighted: bool) -> list[list[Any]]:
    """Rows and gradients of the weights in two steps, and the tables after them."""
    model = build("table_wise", weighted=weighted)
    draw = torch.Generator().manual_seed(0)
    seen: list[list[Any]] = []
    for _ in range(2):
        ids = {name: torch.randint(6, (rows, 3), generator=draw) for name in order}
        weights = torch.rand(rows, 3, generator=draw).requires_grad_()
        out = model(ids, weights)
        (out * torch.randn(out.shape, generator=draw)).sum().backward()
        seen += [out.tolist(), [] if weights.grad is None else weights.grad.tolist()]
    for _, bags in sharded_collections(model):
        for weight in bags.state_dict().values():
            seen += [shard.tensor.tolist() for shard in weight.local_shards()]
    return seen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("rows", [0, 7])
def test_whole_tables_answer_as_after_an_exchange(
    weighted: bool, order: list[str], rows: int
) -> None:
    def look(rank: int, world_size: int) -> list[list[Any]]:
        answers = ReplicableBags._answers_itself
        try:
            by_itself = trained(order, rows, weighted=weighted)
            ReplicableBags._answers_itself = lambda bags: False
            by_exchange = trained(order, rows, weighted=weighted)
        finally:
            ReplicableBags._answers_itself = answers
        return [by_itself, by_exchange]

    ((by_itself, by_exchange),) = run_ranks(look, 1)
    assert by_itself == by_exchange


@pytest.mark.parametrize(("kind", "alone"), [("table_wise", True), ("row_wise", False)])
def test_only_whole_tables_answer_themselves(kind: str, alone: bool) -> None:
    def look(rank: int, world_size: int) -> bool:
        ((_, bags),) = sharded_collections(build(kind, weighted=False))
        return bags._answers_itself()

    assert run_ranks(look, 1) == [alone]


def test_fields_of_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally many ids; got \[2, 4\] of \['a', 'b'\]"):
        one_each({"a": torch.zeros(2).long(), "b": torch.zeros(4).long()})
