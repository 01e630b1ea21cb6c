"""Small random batches for tests, as the keyword arguments of ``LifelongRanker.forward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from modules.context import ContextConfig
from modules.tables import FieldConfig

ITEMS, CATEGORIES, LONGEST = 40, 7, 24
CONTEXT = ContextConfig(
    fields=(("store", 6), ("hour", 9)), numbers=("price", "visits"), width=4, init_std=0.3
)


def fields(**changes: Any) -> tuple[FieldConfig, ...]:
    """Item, category and recency, each 4 wide unless changed."""
    widths = {"attention_dim": 4, "representation_dim": 4} | changes
    return (
        FieldConfig(name="item", num_embeddings=ITEMS, **widths),
        FieldConfig(name="category", num_embeddings=CATEGORIES, **widths),
        FieldConfig(name="recency", num_embeddings=LONGEST + 1, semantic=False, **widths),
    )


def bags(columns: dict[str, Tensor], lengths: Tensor) -> KeyedJaggedTensor:
    """One key per column, all with the same lengths."""
    return KeyedJaggedTensor(
        keys=list(columns),
        values=torch.cat(list(columns.values())),
        lengths=lengths.repeat(len(columns)),
    )


def request(number: int, history_length: int, candidates: int) -> dict[str, Any]:
    """A random request; the same ``number`` gives the same one."""
    draw = torch.Generator().manual_seed(number)

    def ids(high: int, count: int) -> Tensor:
        return torch.randint(1, high, (count,), generator=draw)

    return {
        "history": {
            "item": ids(ITEMS, history_length),
            "category": ids(CATEGORIES, history_length),
            "recency": torch.arange(history_length, 0, -1),
        },
        "candidates": {
            "item": ids(ITEMS, candidates),
            "category": ids(CATEGORIES, candidates),
            "recency": torch.zeros(candidates, dtype=torch.int64),
        },
        "labels": torch.randint(0, 2, (candidates,), generator=draw).float(),
        "id": number,
        "context": {name: ids(size, 1) for name, size in CONTEXT.fields},
        # now and then a number is missing
        "numbers": torch.randn(1, 2, generator=draw)
        .exp()
        .where(torch.rand(1, 2, generator=draw) < 0.8, torch.nan),
    }


def collate(requests: list[dict[str, Any]], seed: int = 0) -> tuple[dict[str, Any], Tensor]:
    """Arguments of the ranker, and the labels."""

    def joined(part: str) -> dict[str, Tensor]:
        return {key: torch.cat([r[part][key] for r in requests]) for key in requests[0][part]}

    lengths = torch.tensor([len(r["history"]["item"]) for r in requests])
    counts = torch.tensor([len(r["labels"]) for r in requests])
    arguments = {
        "history": bags(joined("history"), lengths),
        "candidates": bags(joined("candidates"), torch.ones(int(counts.sum()), dtype=torch.int64)),
        "request_of": torch.arange(len(requests)).repeat_interleave(counts),
        "request_ids": torch.tensor([r["id"] for r in requests]),
        "history_lengths": lengths,
        "candidate_counts": counts,
        "seed": seed,
        "context": bags(joined("context"), torch.ones(len(requests), dtype=torch.int64)),
        "numbers": torch.cat([r["numbers"] for r in requests]),
    }
    return arguments, torch.cat([r["labels"] for r in requests])


def random_requests(step: int, count: int) -> list[dict[str, Any]]:
    """Requests of one global batch: histories of 0 to ``LONGEST`` events, 1 to 4 candidates."""
    draw = torch.Generator().manual_seed(step)
    lengths = torch.randint(0, LONGEST + 1, (count,), generator=draw).tolist()
    candidates = torch.randint(1, 5, (count,), generator=draw).tolist()
    return [
        request(1000 * step + i, n, c)
        for i, (n, c) in enumerate(zip(lengths, candidates, strict=True))
    ]
