"""World sizes 1, 2 and 4 compute what one process with ``nn.EmbeddingBag`` tables computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrec.optim import RowWiseAdagrad

from modules.bags import initialize_tables_
from modules.context import NO_CONTEXT
from modules.crossing.config import CrossingConfig
from modules.loss import ranking_losses, regularized_parameters
from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from sharding.apply import TableOptimizer, shard, sharded_collections
from sharding.cluster_plan import choose_plan
from sharding.narrow import copies, hold_narrow_tables
from sharding.plan import ShardingConfig, collections
from sharding.replicated import held_shards
from tests.batches import CONTEXT, collate, fields, random_requests, request
from tests.ranks import run_ranks

STEPS, REQUESTS, SEED, TABLE_LR, DENSE_LR = 20, 13, 5, 0.1, 0.003
EPS = 1e-3
"""Far above rounding: where a row's gradient cancels to nothing, Adagrad with a tiny epsilon steps
a whole learning rate in the direction of what float32 left over.
"""
META = torch.device("meta")
KERNELS = {"data_parallel": "BatchedDenseEmbeddingBag"}
"""Of all other kinds: fused."""


def _name(settings: dict[str, Any]) -> str:
    return "-".join(getattr(value, "kind", str(value)) for value in settings.values())


def ranker(settings: dict[str, Any], *, sums_rows: bool) -> LifelongRanker:
    torch.manual_seed(SEED)
    settings = dict(settings)
    with_context, attention_dim = settings.pop("context", False), settings.pop("width", 4)
    config = RankerConfig(
        top_k=5, auxiliary_others=4, hidden=(8,), auxiliary_hidden=(6,), **settings
    )
    events = fields(
        attention_dim=attention_dim, attention_init_std=0.3, representation_init_std=0.3
    )
    if config.pooling == "none":
        events = tuple(f for f in events if f.semantic)
    context = CONTEXT if with_context else NO_CONTEXT
    return LifelongRanker(config, events, META, context, sums_rows=sums_rows)


def steps(
    model: torch.nn.Module, dense: torch.optim.Optimizer, rank: int, world_size: int, after: Any
) -> list:
    """Main and auxiliary loss of each step, as far as this rank adds to them."""
    history = []
    for step in range(STEPS):
        requests = random_requests(step, REQUESTS)
        if step == 3:  # the first rank of two, the first two of four have no event at all
            requests[:7] = [request(70 + number, 0, 2) for number in range(7)]
        candidates = sum(len(r["labels"]) for r in requests)
        # unequal shares: 13 requests over 2 or 4 ranks
        begin, end = (REQUESTS * (rank + i) // world_size for i in (0, 1))
        arguments, labels = collate(requests[begin:end], seed=step)
        losses = ranking_losses(
            model(**arguments),
            labels,
            regularized_parameters(model),
            num_candidates=candidates / world_size,
            l2=1e-3,
        )
        dense.zero_grad()
        losses.total().backward()
        dense.step()
        after()
        history.append([losses.main.item() / world_size, losses.auxiliary.item() / world_size])
    return history


def predictions(model: torch.nn.Module) -> list[float]:
    model.eval()
    with torch.no_grad():
        return model(**collate(random_requests(99, REQUESTS))[0]).logits.tolist()


def unsharded(settings: dict[str, Any]) -> tuple[list, list, dict[str, list]]:
    model = ranker(settings, sums_rows=False)
    for _, bags in collections(model):
        bags.to_empty(device="cpu")
    initialize_tables_(model, SEED)
    weights = {n: w for n, w in model.named_parameters() if "embedding_bags" in n}
    tables = RowWiseAdagrad(weights.values(), lr=TABLE_LR, eps=EPS)
    dense = torch.optim.Adam(
        [p for name, p in model.named_parameters() if "embedding_bags" not in name], lr=DENSE_LR
    )

    def update_tables() -> None:
        tables.step()
        tables.zero_grad()

    start = {name: weight.clone() for name, weight in weights.items()}
    losses = steps(model, dense, 0, 1, update_tables)
    # else equal tables would prove nothing; a search by category leaves its attention row alone
    assert max((weight - start[name]).abs().max() for name, weight in weights.items()) > 1e-3
    trained = {name.split(".")[-2]: weight.tolist() for name, weight in weights.items()}
    return losses, predictions(model), trained


def sharded(rank: int, world_size: int, settings: dict[str, Any], kinds: tuple[str, ...]) -> tuple:
    model = ranker(settings, sums_rows=world_size > 1)
    hold_narrow_tables(model)
    plan = choose_plan(
        model,
        world_size=world_size,
        local_world_size=world_size,
        device_type="cpu",
        lookups_per_rank=1000,
        config=ShardingConfig(kinds=kinds),
    )
    model = shard(
        model,
        plan,
        optimizer=TableOptimizer(learning_rate=TABLE_LR, eps=EPS),
        device=torch.device("cpu"),
        seed=SEED,
    )
    in_backward = {n for path, m in sharded_collections(model) for n, _ in m.named_parameters(path)}
    dense = torch.optim.Adam(
        [p for name, p in model.named_parameters() if name not in in_backward], lr=DENSE_LR
    )
    losses = steps(model, dense, rank, world_size, lambda: None)
    shards = [
        (table, offset, rows.tolist())
        for _, collection in sharded_collections(model)
        for table, rows, offset in held_shards(collection.state_dict())
    ]
    kernels = [
        type(kernel).__name__
        for _, collection in sharded_collections(model)
        for lookup in collection._lookups
        for kernel in lookup._emb_modules  # none where this rank has no shard
    ]
    return losses, predictions(model), shards, kernels


SETTINGS = [
    {"sharing": "decoupled", "auxiliary": "full"},
    {"sharing": "decoupled", "auxiliary": "sampled", "score": "cosine"},
    {"sharing": "shared", "auxiliary": "sampled"},
    {"sharing": "shared", "auxiliary": "none", "score": "cosine"},
]
MODELS = [
    {"sharing": "decoupled", "auxiliary": "full", "width": 2},
    {"sharing": "decoupled", "auxiliary": "sampled", "width": 1},
    {"sharing": "projected", "auxiliary": "full"},
    {"sharing": "projected", "projection": "event", "auxiliary": "sampled", "score": "cosine"},
    {"sharing": "three", "auxiliary": "sampled"},
    {"sharing": "four", "auxiliary": "full", "score": "cosine"},
    {"sharing": "shared", "auxiliary": "sampled", "score": "mlp"},
    {"sharing": "shared", "auxiliary": "sampled", "target_aware": False},
    {"sharing": "decoupled", "search": "category", "auxiliary": "full"},
    {"sharing": "shared", "search": "category_filled", "auxiliary": "full"},
    {"sharing": "shared", "search": "soft", "auxiliary": "full"},
    {"sharing": "decoupled", "search": "simhash", "auxiliary": "sampled", "score": "cosine"},
    {"sharing": "shared", "search": "clusters", "auxiliary": "full"},
    {"sharing": "shared", "search": "all", "pooling": "collisions", "auxiliary": "none"},
    {"sharing": "shared", "search": "all", "pooling": "mean", "auxiliary": "none"},
    {"sharing": "decoupled", "search": "all", "auxiliary": "none"},
    {"sharing": "decoupled", "search": "recent", "auxiliary": "none", "short_window": 3},
]
SEPARATION = CrossingConfig(form="cross", residual=True, layer_bias=True, deep=(6,))
FILTERS = CrossingConfig(layers=2, rank=2, normalize=True, attention_layers=1, attention_width=4)
WITHOUT_HISTORY = {"sharing": "shared", "search": "all", "pooling": "none", "auxiliary": "none"}
CROSSED = [
    {"auxiliary": "sampled", "context": True},
    {"auxiliary": "sampled", "head": "crossing", "crossing": SEPARATION, "context": True},
    {"auxiliary": "full", "head": "crossing", "crossing": FILTERS},
    {**WITHOUT_HISTORY, "pooling": "self_attention", "head": "crossing"},
    {**WITHOUT_HISTORY, "head": "crossing", "crossing": CrossingConfig(kind="fm"), "context": True},
    {**WITHOUT_HISTORY, "head": "crossing", "crossing": CrossingConfig(kind="linear"),
     "context": True},
]  # fmt: skip
MODELS += CROSSED
CASES = [(kind, settings) for settings in SETTINGS for kind in ("table_wise", "row_wise")]
# every model both ways would take minutes: the two kinds in turn
CASES += [(("table_wise", "row_wise")[i % 2], settings) for i, settings in enumerate(MODELS)]
CASES += [("data_parallel", settings) for settings in (*SETTINGS, MODELS[0], *MODELS[9:12])]


@pytest.mark.parametrize(
    ("kind", "settings"), CASES, ids=lambda c: c if isinstance(c, str) else _name(c)
)
def test_world_sizes_agree_with_the_unsharded_model(kind: str, settings: dict[str, Any]) -> None:
    losses, logits, tables = unsharded(settings)
    held = {name: torch.tensor(rows) for name, rows in tables.items()}
    held = {name: rows.repeat(1, copies(rows.shape[1])) for name, rows in held.items()}
    # the bare sums of SIM soft's auxiliary enlarge rounding
    near = {"rtol": 1e-3, "atol": 1e-4} if settings.get("search") == "soft" else {}
    near = {"rtol": 1e-4, "atol": 1e-5} | near
    for world_size in (1, 2, 4):
        ranks = run_ranks(sharded, world_size, settings, (kind,))
        summed = torch.tensor([r[0] for r in ranks]).sum(0)
        torch.testing.assert_close(summed, torch.tensor(losses), **near)
        for rank in ranks:
            torch.testing.assert_close(torch.tensor(rank[1]), torch.tensor(logits), **near)
        seen = dict.fromkeys(held, 0)
        for _, _, shards, kernels in ranks:
            assert {*kernels} <= {KERNELS.get(kind, "BatchedFusedEmbeddingBag")}
            for name, (row, column), values in shards:
                part = torch.tensor(values)
                rows = slice(row, row + part.shape[0])
                whole = held[name][rows, column : column + part.shape[1]]
                # rounding of a row whose gradient nearly cancels adds up over the steps
                torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-4)
                seen[name] += part.numel()
        copies_held = world_size if kind == "data_parallel" else 1
        assert seen == {name: copies_held * whole.numel() for name, whole in held.items()}
