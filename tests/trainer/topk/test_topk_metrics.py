"""Metrics of full rankings: hand sums, an outside witness, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from data.errors import InputError
from modules.retrieval.vectors import Vectors
from trainer.topk.interactions import Bought
from trainer.topk.metrics import (
    CUTOFFS,
    LONGEST,
    METRICS,
    Ranked,
    bootstrap_intervals,
    list_metrics,
    rank,
    top_items,
)

RNG = np.random.default_rng(0)


def by_name(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


def test_one_list_by_hand() -> None:
    hits = np.zeros((1, LONGEST), bool)
    hits[0, [0, 2, 7]] = True  # places 1, 3 and 8 of the list
    (values,) = list_metrics(hits, np.array([4]))
    found = by_name(values)
    assert found["precision@5"] == 2 / 5
    assert found["precision@10"] == 3 / 10
    assert found["recall@5"] == 2 / 4
    assert found["recall@20"] == 3 / 4
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
    assert found["ndcg@5"] == pytest.approx((1 + 1 / math.log2(4)) / ideal)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(4) + 1 / math.log2(9)) / ideal)


def test_more_wanted_than_places_can_still_be_perfect() -> None:
    found = by_name(list_metrics(np.ones((1, LONGEST), bool), np.array([100]))[0])
    assert found["ndcg@5"] == found["ndcg@20"] == found["precision@20"] == 1
    assert found["recall@5"] == 5 / 100


@pytest.mark.parametrize("candidates", ["all", "new"])
def test_metrics_are_those_of_another_library_on_whole_rankings(candidates: str) -> None:
    users, items = 7, 40
    vectors = Vectors(torch.randn(users, 6), torch.randn(items, 6))
    train, wanted = (RNG.random((users, items)) < share for share in (0.3, 0.2))
    train[:, 0] = wanted[:, 0] = False
    if candidates == "new":
        wanted &= ~train
    wanted[3] = False  # one user has nothing to find
    known = Bought.of(*train.nonzero(), users, items) if candidates == "new" else None
    ranked = rank(vectors, Bought.of(*wanted.nonzero(), users, items), known, users_chunk=3)
    assert ranked.user.tolist() == [0, 1, 2, 4, 5, 6]
    scores = (vectors.users @ vectors.items.T).numpy()
    for user, values in zip(ranked.user, ranked.values, strict=True):
        allowed = np.ones(items, bool) if known is None else ~train[user]
        allowed[0] = False
        truth, score = wanted[user, allowed], scores[user, allowed]
        order = np.argsort(-score)
        for k in CUTOFFS:
            hits = truth[order[:k]].sum()
            found = by_name(values)
            assert found[f"precision@{k}"] == hits / k
            assert found[f"recall@{k}"] == pytest.approx(hits / truth.sum())
            expected = ndcg_score([truth.astype(int)], [score], k=k)
            assert found[f"ndcg@{k}"] == pytest.approx(expected)


def test_of_equal_scores_the_lower_item_comes_first() -> None:
    scores = torch.tensor([[0.0, 2, 1, 2, 1, 1], [0.0, 0, 0, 0, 0, 0], [5, -1, 0.0, 0, -0.0, 5]])
    assert top_items(scores, 4).tolist() == [[1, 3, 2, 4], [0, 1, 2, 3], [0, 5, 2, 3]]


def test_many_ties_are_as_a_stable_sort() -> None:
    scores = torch.from_numpy(RNG.integers(0, 5, size=(20, 300)).astype(np.float32))
    expected = scores.argsort(dim=1, descending=True, stable=True)[:, :LONGEST]
    assert top_items(scores, LONGEST).equal(expected)


def test_what_is_no_candidate_is_never_listed() -> None:
    scores = torch.tensor([[-torch.inf, 1, -torch.inf, 2], [-torch.inf] * 4])
    assert top_items(scores, 3).tolist() == [[3, 1, 0], [0, 0, 0]]


def test_the_size_of_a_chunk_changes_nothing() -> None:
    vectors = Vectors(torch.randint(-3, 4, (9, 2)).float(), torch.randint(-3, 4, (50, 2)).float())
    wanted = Bought.of(*(RNG.random((9, 50)) < 0.3).nonzero(), 9, 50)
    one, all_at_once = (rank(vectors, wanted, None, chunk) for chunk in (1, 100))
    np.testing.assert_array_equal(one.items, all_at_once.items)
    np.testing.assert_array_equal(one.values, all_at_once.values)


def test_the_unknown_item_is_not_ranked() -> None:
    vectors = Vectors(torch.ones(1, 1), torch.tensor([[9.0], [1.0], [2.0]]))
    ranked = rank(vectors, Bought.of(np.array([0]), np.array([1]), 1, 3), None, 8)
    assert ranked.items[0, :3].tolist() == [2, 1, 0]
    assert by_name(ranked.values[0])["precision@5"] == 1 / 5


def test_a_diverged_model_is_an_error() -> None:
    vectors = Vectors(torch.tensor([[math.nan]]), torch.ones(3, 1))
    with pytest.raises(InputError, match="diverged"):
        rank(vectors, Bought.of(np.array([0]), np.array([1]), 1, 3), None, 8)


def test_intervals_hold_the_mean_and_shrink_with_users() -> None:
    few, many = RNG.random((50, 1)), RNG.random((5000, 1))
    widths = []
    for values in (few, many):
        ((low, high),) = bootstrap_intervals(values, 400)
        assert low < values.mean() < high
        widths.append(high - low)
        # of a mean of n numbers: 2 x 1.96 standard errors
        expected = 2 * 1.96 * values.std() / math.sqrt(len(values))
        assert high - low == pytest.approx(expected, rel=0.2)
    assert widths[1] < widths[0] / 5


def test_without_users_or_resamples_intervals_are_undefined() -> None:
    none = Ranked(np.zeros(0, int), np.zeros((0, LONGEST), int), np.zeros((0, len(METRICS))))
    assert math.isnan(none.means()["ndcg@5"])
    assert all(math.isnan(low) for low, _ in none.intervals(10).values())
    assert math.isnan(bootstrap_intervals(np.ones((3, 1)), 0)[0][0])
