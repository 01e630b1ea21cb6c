"""Batches and outputs written out by hand."""

from __future__ import annotations

import numpy as np
import torch

from data.batch import RankingBatch
from modules.ranker import RankerOutput
from tests.batches import bags


def batch_of(
    requests: list[tuple[list[int], list[int]]],
    category: dict[int, int],
    labels: list[int] | None = None,
) -> RankingBatch:
    """Requests as (items of the history in time order, items of the candidates).

    Args:
        category: by item.
        labels: of all candidates; all 0 if not given.
    """
    lengths = torch.tensor([len(history) for history, _ in requests])
    counts = torch.tensor([len(candidates) for _, candidates in requests])
    events = [item for history, _ in requests for item in history]
    candidates = [item for _, items in requests for item in items]
    recency = [r for n in lengths.tolist() for r in range(n, 0, -1)]
    ones = torch.ones(len(candidates), dtype=torch.int64)

    def columns(items: list[int], recencies: list[int]) -> dict[str, torch.Tensor]:
        values = {"item": items, "category": [category[item] for item in items]}
        return {
            name: torch.tensor(ids, dtype=torch.int64)
            for name, ids in (values | {"recency": recencies}).items()
        }

    users = torch.arange(len(requests))
    return RankingBatch(
        context=bags({"user": users}, torch.ones_like(users)),
        history=bags(columns(events, recency), lengths),
        candidates=bags(columns(candidates, [0] * len(candidates)), ones),
        request_of=users.repeat_interleave(counts),
        labels=torch.tensor(labels or [0] * len(candidates), dtype=torch.float32),
        request_ids=users,
        history_lengths=lengths,
        candidate_counts=counts,
        global_candidates=len(candidates),
        seed=0,
    )


def output_of(recency: list[list[int]], weights: list[list[float]]) -> RankerOutput:
    """What a model says that chose so; its logits are zeros."""
    return RankerOutput(
        logits=torch.zeros(len(recency)),
        auxiliary_logits=None,
        weights=torch.tensor(weights),
        recency=torch.tensor(recency),
    )


def random_requests(
    seed: int, count: int, items: int = 40, longest: int = 12
) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Requests as ``batch_of`` takes them, of 1 to 3 candidates, and their labels."""
    rng = np.random.default_rng(seed)
    requests, labels = [], []
    for _ in range(count):
        history = rng.integers(1, items, rng.integers(0, longest + 1)).tolist()
        candidates = rng.integers(1, items, rng.integers(1, 4)).tolist()
        requests.append((history, candidates))
        labels += rng.integers(0, 2, len(candidates)).tolist()
    return requests, labels
