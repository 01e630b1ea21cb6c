"""The probes against loops by hand."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.probes import ReplicaProbe, SearchProbe
from modules.score import Score
from modules.search import Histories
from modules.search_units import ExactSearch
from modules.tables import FieldConfig
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


LENGTHS, COUNTS, K = [6, 0, 2, 30, 9, 17], [2, 1, 1, 3, 2, 1], 4
"""Of six requests. Few items: most histories hold some of them several times."""
SCORE = Score((FieldConfig(name="item", num_embeddings=12, attention_dim=3),))


def recall_of_a_copy(requests: slice) -> tuple[float | None, list[float]]:
    """What the probe says of a search by old rows, and each candidate's share by hand."""
    draw = torch.Generator().manual_seed(0)
    live, old = torch.randn(2, 12, 3, generator=draw).double()
    events = [torch.randint(0, 12, (n,), generator=draw) for n in LENGTHS][requests]
    wanted = [torch.randint(0, 12, (n,), generator=draw) for n in COUNTS][requests]
    counts = torch.tensor(COUNTS[requests])
    histories = Histories.of(
        {"item": torch.cat(events)},
        {"item": torch.cat(wanted)},
        torch.arange(len(counts)).repeat_interleave(counts),
        torch.tensor(LENGTHS[requests]),
        counts,
    )

    def attend(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows[histories.events["item"]], rows[histories.candidates["item"]]

    search = ExactSearch()
    ranker = SimpleNamespace(
        search=search, tables=SimpleNamespace(attend=lambda events, candidates: attend(live))
    )
    probe = ReplicaProbe(ranker, torch.device("cpu"))
    keys, queries = attend(old)
    search(histories, lambda: (keys.__getitem__, queries), SCORE, K)
    shares = []
    for history, candidates in zip(events, wanted, strict=True):
        for candidate in candidates.tolist() if len(history) else ():
            by_rows = (
                sorted(history.tolist(), key=lambda i, t=table: -(t[i] @ t[candidate]).item())[:K]
                for table in (live, old)
            )
            best, found = map(Counter, by_rows)
            shares.append((best & found).total() / best.total())
    return probe.close(), shares


def test_recall_of_a_copy_is_that_of_a_loop_at_any_world_size() -> None:
    ((recall, shares),) = run_ranks(lambda rank, _: recall_of_a_copy(slice(0, 6)), 1)
    assert 0 < recall < 1
    assert len(shares) == 9
    assert recall == pytest.approx(sum(shares) / len(shares))
    parts = [slice(0, 2), slice(1, 2)]  # the second rank has nobody with a history
    ((recall, shares), of_second) = run_ranks(lambda rank, _: recall_of_a_copy(parts[rank]), 2)
    assert recall == of_second[0] == pytest.approx(sum(shares) / len(shares))
    nobody = run_ranks(lambda rank, _: recall_of_a_copy(slice(1, 2))[0], 1)
    assert nobody == [None]
