"""Applied plans: every table is where the plan says, fused, and nobody else's parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter

from modules.bags import initialize_tables_
from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from sharding.apply import TableOptimizer, shard, sharded_collections
from sharding.cluster_plan import choose_plan
from sharding.plan import PlanError, ShardingConfig, describe_plan
from tests.batches import ITEMS, collate, fields, random_requests
from tests.ranks import run_ranks

SEED = 3
CPU = torch.device("cpu")


def ranker(sharing: str, device: str = "meta") -> LifelongRanker:
    config = RankerConfig(
        sharing=sharing, auxiliary="none", top_k=2, hidden=(8,), auxiliary_hidden=(8,)
    )
    return LifelongRanker(config, fields(), torch.device(device))


def sharded(
    world_size: int, kind: str, sharing: str = "decoupled", optimizer: Any = None
) -> tuple[Any, dict[str, dict]]:
    """A sharded model, and its plan by table."""
    model = ranker(sharing)
    plan = choose_plan(
        model,
        world_size=world_size,
        local_world_size=world_size,
        device_type="cpu",
        lookups_per_rank=100,
        config=ShardingConfig(kinds=(kind,)),
    )
    described = describe_plan(model, plan, world_size=world_size, optimizer="")["tables"]
    optimizer = optimizer or TableOptimizer()
    model = shard(model, plan, optimizer=optimizer, device=CPU, seed=SEED)
    return model, {table["name"]: table for table in described}


def local_shards(model: torch.nn.Module) -> list[tuple[str, list[int], torch.Tensor]]:
    """Table, offset and rows of all that this rank holds."""
    return [
        (name.split(".")[-2], list(part.metadata.shard_offsets), part.tensor)
        for _, bags in sharded_collections(model)
        for name, weight in bags.state_dict().items()
        for part in weight.local_shards()
    ]


@pytest.mark.parametrize("sharing", ["decoupled", "shared"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_table_is_sharded_as_planned_and_fused(
    world_size: int, kind: str, sharing: str
) -> None:
    def look(rank: int, world_size: int) -> None:
        model, plan = sharded(world_size, kind, sharing)
        assert not any(isinstance(module, EmbeddingBagCollection) for module in model.modules())
        bags = [module for _, module in sharded_collections(model)]
        assert all(isinstance(module, ShardedEmbeddingBagCollection) for module in bags)
        assert sum(len(module.module_sharding_plan) for module in bags) == len(plan)
        kernels = [k for m in bags for lookup in m._lookups for k in lookup._emb_modules]
        assert all(type(kernel) is BatchedFusedEmbeddingBag for kernel in kernels)
        planned = [
            (name, shard["offset"], shard["size"])
            for name, table in plan.items()
            for shard in table["shards"]
            if shard["rank"] == rank and 0 not in shard["size"]
        ]
        held = [
            (name, offset, list(rows.shape))
            for name, offset, rows in local_shards(model)
            if rows.numel()
        ]
        assert sorted(held) == sorted(planned)
        fused = sum(k.emb_module.weights_host.numel() for k in kernels)
        assert fused == sum(rows * columns for _, _, (rows, columns) in planned)

    run_ranks(look, world_size)


def test_one_rank_averages_with_nobody_and_names_its_parameters_as_two_do() -> None:
    names: list[list[str]] = []
    for world_size in (1, 2):

        def look(rank: int, world_size: int) -> list[str]:
            model, _ = sharded(world_size, "table_wise")
            averages = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
            assert len(averages) == world_size - 1
            return [*model.state_dict()]

        names.append(run_ranks(look, world_size)[0])
    assert names[0] == names[1]


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_no_table_is_a_parameter_of_the_dense_optimizer_or_of_ddp(kind: str) -> None:
    def look(rank: int, world_size: int) -> None:
        model, _ = sharded(world_size, kind)
        dense = dict(in_backward_optimizer_filter(model.named_parameters()))
        assert dense
        assert not [name for name in dense if "tables" in name]
        (ddp,) = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        synchronised = {
            name for name, p in ddp.module.named_parameters()
            if any(p is other for other in ddp._module_parameters)
        }  # fmt: skip
        assert synchronised == set(dense)
        held = {table for table, _, rows in local_shards(model) if rows.numel()}
        assert {name.split(".")[-2] for name in model.fused_optimizer.params} == held

    run_ranks(look, 2)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_tables_start_alike_under_every_plan(world_size: int, kind: str) -> None:
    alone = ranker("decoupled", "cpu")
    initialize_tables_(alone.tables, SEED)
    start = {name.split(".")[-2]: weight for name, weight in alone.tables.named_parameters()}

    def compare(rank: int, world_size: int) -> int:
        numbers = 0
        for table, (row, column), part in local_shards(sharded(world_size, kind)[0]):
            rows, columns = part.shape
            expected = start[table].detach()[row : row + rows, column : column + columns]
            torch.testing.assert_close(part, expected, rtol=0, atol=0)
            numbers += part.numel()
        return numbers

    assert sum(run_ranks(compare, world_size)) == sum(weight.numel() for weight in start.values())


def test_backward_alone_moves_the_rows_that_were_looked_up_and_no_others() -> None:
    def moved(rank: int, world_size: int) -> tuple[list[int], list[int]]:
        model, _ = sharded(world_size, "row_wise", optimizer=TableOptimizer(kind="sgd"))
        before = [(name, offset, rows.clone()) for name, offset, rows in local_shards(model)]
        arguments, labels = collate(random_requests(rank, 1))
        model(**arguments).logits.sub(labels).square().sum().backward()
        rows = [
            offset[0] + int(i)
            for (name, offset, old), (_, _, new) in zip(before, local_shards(model), strict=True)
            if name == "representation_item"
            for i in (old != new).any(dim=1).nonzero()
        ]
        seen = [*arguments["history"]["item"].values(), *arguments["candidates"]["item"].values()]
        return rows, [int(item) for item in seen]

    answers = run_ranks(moved, 2)
    changed = {row for rows, _ in answers for row in rows}
    seen = {item for _, items in answers for item in items}
    assert changed
    assert changed <= seen | {0}  # row 0 stands in for events that are not there
    assert len(changed) < ITEMS


def test_fused_adam_on_cpus_is_refused_with_what_there_is() -> None:
    with pytest.raises(PlanError, match=r"CUDA only; on CPUs take rowwise_adagrad"):
        TableOptimizer(kind="adam").fused_params("cpu")
    assert TableOptimizer(kind="adam").fused_params("cuda")["eps"] == 1e-8


def test_a_learning_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learning_rate must be positive, got 0\.0"):
        TableOptimizer(learning_rate=0.0)
