"""Recursive k-means against a slow one, and what every clustering must be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import modules.clusters
from modules.clusters import MAX_MEMBERS, Clusters, cluster_histories
from tests.modules.cases import make_config, make_ranker, make_requests, train_step
from tests.modules.clustering import recursive_k_means

LENGTHS = torch.tensor([0, 5, MAX_MEMBERS, MAX_MEMBERS + 1, 0, 300, 70, 1])


def histories(kind: str) -> Tensor:
    draws = torch.Generator().manual_seed(2)
    count = int(LENGTHS.sum())
    if kind == "all alike":
        return torch.ones(count, 3, dtype=torch.float64)
    vectors = torch.randn(count, 3, generator=draws, dtype=torch.float64)
    if kind == "few items":
        return vectors[torch.randint(0, 4, (count,), generator=draws)]
    return vectors


def members(clusters: Clusters) -> list[list[list[int]]]:
    """Of each history, places of the events of each cluster."""
    found, first_event, first_cluster = [], 0, 0
    for length, count in zip(LENGTHS.tolist(), clusters.lengths.tolist(), strict=True):
        own = clusters.of_event[first_event : first_event + length] - first_cluster
        found.append([(own == c).nonzero().flatten().tolist() for c in range(count)])
        first_event, first_cluster = first_event + length, first_cluster + count
    return found


@pytest.mark.parametrize("kind", ["apart", "few items", "all alike"])
def test_clusters_are_those_of_a_slow_recursion(kind: str) -> None:
    vectors = histories(kind)
    expected = [recursive_k_means(part.tolist()) for part in vectors.split(LENGTHS.tolist())]
    assert members(cluster_histories(vectors, LENGTHS)) == expected


@pytest.mark.parametrize("kind", ["apart", "few items", "all alike"])
def test_every_event_is_in_one_small_cluster_of_its_own_history(kind: str) -> None:
    clusters = cluster_histories(histories(kind), LENGTHS)
    assert int(clusters.sizes.max()) <= MAX_MEMBERS
    assert int(clusters.sizes.min()) >= 1
    for length, parts in zip(LENGTHS.tolist(), members(clusters), strict=True):
        assert sorted(place for part in parts for place in part) == list(range(length))


def test_vectors_that_are_no_numbers_end_too() -> None:
    vectors = torch.full((int(LENGTHS.sum()), 3), torch.nan)
    assert int(cluster_histories(vectors, LENGTHS).sizes.max()) <= MAX_MEMBERS


def test_no_events_make_no_clusters() -> None:
    clusters = cluster_histories(torch.zeros(0, 3), torch.tensor([0, 0]))
    assert clusters.lengths.tolist() == [0, 0]
    assert clusters.mean(torch.zeros(0, 5)).shape == (0, 5)


def test_means_are_those_of_the_members() -> None:
    vectors = histories("apart")
    clusters = cluster_histories(vectors, LENGTHS)
    means = clusters.mean(vectors)
    for number, mean in enumerate(means):
        torch.testing.assert_close(mean, vectors[clusters.of_event == number].mean(0))


def test_short_histories_are_one_cluster_each() -> None:
    clusters = cluster_histories(torch.randn(7, 3), torch.tensor([0, 4, 0, 3, 0]))
    assert clusters.of_event.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert clusters.lengths.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_clusters_of_one_event_train_as_exact_search(monkeypatch, score: str) -> None:
    monkeypatch.setattr(modules.clusters, "MAX_MEMBERS", 1)
    found = []
    for search in ("exact", "clusters"):
        config = make_config(search=search, score=score, auxiliary="full", sharing="shared")
        found.append(train_step(make_ranker(config), make_requests()))
    (exact, exact_losses, exact_gradients), (clusters, losses, gradients) = found
    torch.testing.assert_close(clusters.logits, exact.logits)
    torch.testing.assert_close(losses, exact_losses)
    torch.testing.assert_close(dict(gradients), dict(exact_gradients))
    torch.testing.assert_close(clusters.weights, exact.weights)
    assert clusters.recency.tolist() == exact.recency.tolist()
