"""The search probe against a loop by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.probes import SearchProbe
from tests.analysis.small_batches import batch_of, output_of
from tests.ranks import run_ranks

# a request each: items of the history, candidates, and the recency that the search chose for each
REQUESTS = [
    ([5, 7, 5, 9], [5, 9], [[1, 2], [1, 4]]),
    ([7, 7, 7], [7, 5], [[2, 1], [3, 1]]),
    ([], [5], [[0, 0]]),
    ([6], [6], [[1, 0]]),
]
WEIGHTS = [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.0, 0.0], [1.0, 0.0]]
CATEGORY = {5: 1, 6: 1, 7: 2, 9: 2}


def by_hand(key: dict[int, int]) -> tuple[float, int]:
    shares = []
    for history, candidates, chosen in REQUESTS:
        for candidate, recencies in zip(candidates, chosen, strict=True):
            same = sum(key[item] == key[candidate] for item in history)
            picked = [history[len(history) - r] for r in recencies if r]
            hits = sum(key[item] == key[candidate] for item in picked)
            if same:
                shares.append(hits / min(same, 2))
    return sum(shares) / len(shares), len(shares)


def measure(
    requests: list[Any], weights: list[list[float]], search: str = "exact"
) -> dict[str, Any]:
    model = SimpleNamespace(config=SimpleNamespace(search=search))
    probe = SearchProbe(model, torch.device("cpu"))
    batch = batch_of([(history, candidates) for history, candidates, _ in requests], CATEGORY)
    recency = [row for _, _, chosen in requests for row in chosen]
    probe.update(output_of(recency, weights), batch)
    return probe.to_json()


def test_recalls_and_entropy_are_those_of_a_loop() -> None:
    found = run_ranks(lambda rank, world_size: measure(REQUESTS, WEIGHTS), 1)[0]
    for field, key in (("item", {i: i for i in CATEGORY}), ("category", CATEGORY)):
        recall, count = by_hand(key)
        assert found[f"same_{field}_recall"] == pytest.approx(recall)
        assert found[f"same_{field}_candidates"] == count
    entropy = [-sum(w * math.log(w) for w in row if w) for row in WEIGHTS if sum(row)]
    assert found["attention_entropy"] == pytest.approx(sum(entropy) / len(entropy))
    assert found["attention_candidates"] == 5


def test_two_ranks_find_what_one_finds() -> None:
    def half(rank: int, world_size: int) -> dict[str, Any]:
        parts = (slice(0, 2), slice(0, 4)) if rank == 0 else (slice(2, 4), slice(4, 6))
        return measure(REQUESTS[parts[0]], WEIGHTS[parts[1]])

    whole = run_ranks(lambda rank, world_size: measure(REQUESTS, WEIGHTS), 1)[0]
    for found in run_ranks(half, 2):
        assert found == pytest.approx(whole)


def test_where_nothing_can_be_found_there_is_no_share() -> None:
    requests = [([], [5], [[0, 0]])]
    found = run_ranks(lambda rank, world_size: measure(requests, [[0.0, 0.0]]), 1)[0]
    assert found["same_item_recall"] is None
    assert found["same_item_candidates"] == 0
    assert found["attention_entropy"] is None


def test_clusters_are_no_events_that_could_be_found() -> None:
    found = run_ranks(lambda rank, world_size: measure(REQUESTS, WEIGHTS, "clusters"), 1)[0]
    assert found["same_item_recall"] is None
    assert found["attention_entropy"] > 0
