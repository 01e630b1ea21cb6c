"""Searches that read attention tables without asking other ranks find what others find."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from modules.whole_tables import WholeTables
from sharding.apply import TableOptimizer, shard
from sharding.cluster_plan import choose_plan
from sharding.narrow import hold_narrow_tables
from sharding.plan import ShardingConfig
from sharding.search_tables import (
    Replica,
    SpreadTables,
    read_live_tables,
    read_replica,
    refresh_replica,
)
from tests.batches import collate, fields, random_requests
from tests.ranks import run_ranks
from trainer.experiment import Experiment

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
REPLICATED = [(2, "data_parallel", settings) for settings in SETTINGS[1::2]]
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
    [CUT, *REPLICATED, *((*plan, settings) for plan in PLANS for settings in SETTINGS)],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else str(part),
)
def test_a_copy_that_is_renewed_each_step_finds_what_a_lookup_finds(
    world_size: int, kind: str, settings: dict[str, Any]
) -> None:
    def compare(rank: int, world_size: int) -> None:
        looks_up, reads_copy, reads_live = (sharded(settings, world_size, kind) for _ in range(3))
        read_replica(reads_copy.module, "float32", CPU)
        read_live_tables(reads_live.module)
        lie_whole = world_size == 1 or kind == "data_parallel"
        read = {type(tables) for tables in reads_live.module.tables.whole.values()}
        assert read == {WholeTables if lie_whole else SpreadTables}
        for step in range(3):
            refresh_replica(reads_copy)
            expected = outputs(looks_up, rank, world_size, step)
            for model in (reads_copy, reads_live):
                for actual, wanted in zip(
                    outputs(model, rank, world_size, step), expected, strict=True
                ):
                    torch.testing.assert_close(actual, wanted)

    run_ranks(compare, world_size)


KINDS = ["table_wise", "row_wise", "column_wise"]


def replica_of(model: Any) -> Replica:
    (replica,) = (module for module in model.modules() if isinstance(module, Replica))
    return replica


def all_rows(model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Each field's attention rows in the copy, and by TorchRec's lookup."""
    replica = replica_of(model)
    in_copy, live = [], []
    for field in fields():
        # a rank asks for a row too many where it has to ask for as many as the others
        ids = {f.name: torch.arange(field.num_embeddings) % f.num_embeddings for f in fields()}
        width = replica(ids).shape[1] // len(ids)
        column = [f.name for f in fields()].index(field.name) * width
        keys, _ = model.module.tables.attend(ids, {name: i[:1] for name, i in ids.items()})
        for rows, found in ((replica(ids), in_copy), (keys.detach(), live)):
            found.append(rows[:, column : column + width])
    return in_copy, live


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 4])  # three tables: whole, the fourth rank has none
def test_every_rank_has_all_rows_after_a_renewal(world_size: int, kind: str) -> None:
    def look(rank: int, world_size: int) -> list[float]:
        model = sharded({"sharing": "decoupled", "width": 16}, world_size, kind)
        read_replica(model.module, "float32", CPU)
        before, _ = all_rows(model)
        for step in range(2):
            outputs(model, rank, world_size, step)
        for old, unchanged in zip(before, all_rows(model)[0], strict=True):
            assert torch.equal(old, unchanged)
        refresh_replica(model)
        for old, in_copy, live in zip(before, *all_rows(model), strict=True):
            assert torch.equal(in_copy, live)
            assert not torch.equal(in_copy, old)
        return torch.cat(all_rows(model)[0]).flatten().tolist()

    first, *others = run_ranks(look, world_size)
    assert all(rows == first for rows in others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_int8_is_within_half_a_step_of_the_live_rows(world_size: int, kind: str) -> None:
    def look(rank: int, world_size: int) -> list[float]:
        model = sharded({"sharing": "decoupled", "width": 64}, world_size, kind)
        outputs(model, rank, world_size, 0)
        read_replica(model.module, "int8", CPU)
        for in_copy, live in zip(*all_rows(model), strict=True):
            step = (live.max(1).values - live.min(1).values)[:, None] / 255
            assert ((in_copy - live).abs() <= step / 2 + 1e-6).all()
            assert not torch.equal(in_copy, live)
        parts = [part for table in replica_of(model).tables.values() for part in table]
        assert {part.dtype for part in parts} == {torch.uint8}
        return [sum(part.shape[1] for part in parts) / len(parts)]

    # a byte a number and 8 for each part of a row, which TorchRec cuts at 32 columns or more
    assert run_ranks(look, world_size)[0][0] in (64 + 8, 32 + 8)


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 16), ("int8", 2), ("int8", 8)])
def test_bfloat16_is_held_where_it_is_asked_for_or_8_bits_save_nothing(
    dtype: str, width: int
) -> None:
    def look(rank: int, world_size: int) -> None:
        model = sharded({"sharing": "decoupled", "width": width}, world_size, "row_wise")
        read_replica(model.module, dtype, CPU)
        for in_copy, live in zip(*all_rows(model), strict=True):
            assert torch.equal(in_copy, live.bfloat16().float())
        for (part,) in replica_of(model).tables.values():
            assert (part.dtype, part.shape[1]) == (torch.bfloat16, width)

    run_ranks(look, 2)


def test_a_copy_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="one of float32, bfloat16, int8, got 'float16'"):
        Experiment(replica_steps=1, replica_dtype="float16")
