"""Searches that read attention tables without asking other ranks find what others find."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from sharding.apply import TableOptimizer, shard
from sharding.narrow import hold_narrow_tables
from sharding.plan import ShardingConfig, choose_plan
from sharding.search_tables import Replica, read_live_tables, read_replica, refresh_replica
from tests.batches import collate, fields, random_requests
from tests.ranks import run_ranks

CPU = torch.device("cpu")
REQUESTS = 12
SETTINGS: list[dict[str, Any]] = [
    {"sharing": "decoupled", "score": "cosine"},
    {"sharing": "shared"},
    {"sharing": "projected"},
    {"sharing": "three", "search": "simhash"},
    {"sharing": "four"},
    {"sharing": "decoupled", "width": 2},
]
PLANS = [(1, "table_wise"), (2, "row_wise")]
# TorchRec cuts a table 256 wide by columns on a single rank too
CUT = (1, "column_wise", {"sharing": "decoupled", "width": 256})


def sharded(settings: dict[str, Any], world_size: int, kind: str) -> LifelongRanker:
    settings = dict(settings)
    width = settings.pop("width", 4)
    config = RankerConfig(auxiliary="none", top_k=3, hidden=(8,), **settings)
    widths = {"attention_dim": width, "attention_init_std": 0.5, "representation_init_std": 0.5}
    torch.manual_seed(3)  # the networks of all models start alike
    model = LifelongRanker(config, fields(**widths), torch.device("meta"))
    hold_narrow_tables(model)
    plan = choose_plan(
        model,
        world_size=world_size,
        local_world_size=world_size,
        device_type="cpu",
        lookups_per_rank=100,
        config=ShardingConfig(kinds=(kind,)),
    )
    optimizer = TableOptimizer(learning_rate=0.3, eps=1e-3)
    return shard(model, plan, optimizer=optimizer, device=CPU, seed=7)


def outputs(model: Any, rank: int, world_size: int, seed: int) -> list[torch.Tensor]:
    share = slice(REQUESTS * rank // world_size, REQUESTS * (rank + 1) // world_size)
    out = model(**collate(random_requests(seed, REQUESTS)[share], seed=seed)[0])
    out.logits.sum().backward()  # the tables change
    return [out.logits.detach(), out.weights, out.recency]


@pytest.mark.parametrize(
    ("world_size", "kind", "settings"),
    [CUT, *((*plan, settings) for plan in PLANS for settings in SETTINGS)],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else str(part),
)
def test_a_copy_that_is_renewed_each_step_finds_what_a_lookup_finds(
    world_size: int, kind: str, settings: dict[str, Any]
) -> None:
    def compare(rank: int, world_size: int) -> None:
        looks_up, reads_copy, reads_live = (sharded(settings, world_size, kind) for _ in range(3))
        read_replica(reads_copy.module, torch.float32, CPU)
        read_live_tables(reads_live.module)
        assert bool(reads_live.module.tables.whole) == (kind == "table_wise")
        for step in range(3):
            refresh_replica(reads_copy)
            expected = outputs(looks_up, rank, world_size, step)
            for model in (reads_copy, reads_live):
                for actual, wanted in zip(
                    outputs(model, rank, world_size, step), expected, strict=True
                ):
                    torch.testing.assert_close(actual, wanted)

    run_ranks(compare, world_size)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_a_copy_is_as_old_as_its_renewal_whatever_the_plan(kind: str) -> None:
    def look(rank: int, world_size: int) -> list[float]:
        model = sharded({"sharing": "decoupled"}, world_size, kind)
        read_replica(model.module, torch.bfloat16, CPU)
        (replica,) = (m for m in model.modules() if isinstance(m, Replica))
        ids = {name: torch.arange(5) for name in replica.tables}
        before = replica(ids)
        live, _ = model.module.tables.attend(ids, ids)
        torch.testing.assert_close(before, live.detach(), rtol=2**-8, atol=0)
        for step in range(2):
            outputs(model, rank, world_size, step)
        assert torch.equal(replica(ids), before)
        refresh_replica(model)
        assert not torch.equal(replica(ids), before)
        return replica(ids).flatten().tolist()

    first, second = run_ranks(look, 2)
    assert first == second
