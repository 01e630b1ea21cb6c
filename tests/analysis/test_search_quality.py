"""NDCG and recall of searches against a loop by hand and scikit-learn."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import ndcg_score

from analysis.mutual_information import Axes, InformationCounts, recency_edges
from analysis.search_quality import Enough, SearchQuality, _intervals
from modules.bags import initialize_tables_
from modules.ranker import LifelongRanker, RankerConfig
from tests.analysis.small_batches import batch_of, random_requests
from tests.batches import fields
from tests.ranks import run_ranks

K = 4
CATEGORY = {item: 1 + item % 5 for item in range(1, 40)}
AXES = Axes(np.array([1, 2, 3]), np.array([1, 2, 3, 4]), recency_edges(12), 7)
ENOUGH = Enough(candidates=1, events=3, uncertain_share=0.4)


def ranker(score: str = "dot") -> LifelongRanker:
    torch.manual_seed(0)
    config = RankerConfig(
        top_k=K, auxiliary="none", score=score, hidden=(5,), auxiliary_hidden=(5,)
    )
    model = LifelongRanker(config, fields(attention_init_std=1.0))
    initialize_tables_(model.tables, seed=1)
    return model.eval()


def forward(model: LifelongRanker, batch: Any) -> Any:
    return model(
        history=batch.history, candidates=batch.candidates, request_of=batch.request_of,
        request_ids=batch.request_ids, history_lengths=batch.history_lengths,
        candidate_counts=batch.candidate_counts,
    )  # fmt: skip


def counted() -> InformationCounts:
    counts = InformationCounts(AXES, torch.device("cpu"))
    requests, labels = random_requests(0, 400)
    counts.update(batch_of(requests, CATEGORY, labels))
    return counts


def measure(model: LifelongRanker, seed: int = 1, change: Any = lambda output: output) -> Any:
    def of_rank(rank: int, world_size: int) -> dict[str, Any]:
        quality = SearchQuality(model, counted(), ENOUGH, torch.device("cpu"))
        requests, _ = random_requests(seed, 60)
        batch = batch_of(requests, CATEGORY)
        quality.update(change(forward(model, batch)), batch)
        return quality.to_json()

    return run_ranks(of_rank, 1)[0]


def by_hand(model: LifelongRanker, order: str, judge: str, seed: int = 1) -> Any:
    """(ndcg, official, recall) by k, and how many candidates."""
    counts = counted()
    gains, certain = counts.information(), counts.certain(ENOUGH.events)
    if judge == "judged":
        gains, _ = counts.widened_until_certain(ENOUGH.events)
    requests, _ = random_requests(seed, 60)
    ndcg, official, recall = [], [], []
    for history, candidates in requests:
        for item in candidates:
            if CATEGORY[item] not in AXES.targets or not history:
                continue
            gain, sure = [], []
            for position, event in enumerate(history):
                place = np.searchsorted(AXES.edges, len(history) - position, side="right") - 1
                cell = (int(CATEGORY[item]) - 1, int(CATEGORY[event]) - 1, place)
                known = CATEGORY[event] in AXES.events
                gain.append(float(gains[cell]) if known else 0.0)
                sure.append(bool(certain[cell]) if known else False)
            gain, sure = np.array(gain), np.array(sure)
            if judge == "published" and (~sure).mean() > ENOUGH.uncertain_share:
                continue
            ideal = np.sort(gain)[::-1][:K]
            if ideal.max() == 0:
                continue
            ranked = gain[order_by_hand(model, order, item, history)][:K]
            discount = 1 / np.log2(np.arange(2, K + 2))
            dcg, best = (np.cumsum(np.pad(g, (0, K - len(g))) * discount) for g in (ranked, ideal))
            wanted = ideal[ideal > 0]
            ndcg.append(dcg / best)
            official.append(dcg / best[-1])
            hits = [min((ranked[:k] >= wanted[-1]).sum(), len(wanted)) for k in range(1, K + 1)]
            recall.append(np.array(hits) / len(wanted))
    return [np.mean(values, axis=0) for values in (ndcg, official, recall)], len(ndcg)


def order_by_hand(model: LifelongRanker, order: str, item: int, history: list[int]) -> np.ndarray:
    if order == "most recent":
        return np.arange(len(history))[::-1]
    batch = batch_of([(history, [item])], CATEGORY)
    ids = {name: batch.history[name].values() for name in ("item", "category", "recency")}
    targets = {name: batch.candidates[name].values() for name in ids}
    keys, queries = model.tables.attend(ids, targets)
    item_k, category_k, recency_k = keys.detach().split(4, dim=1)
    item_q, category_q, recency_q = queries.detach().split(4, dim=1)
    semantic = category_k @ category_q[0]
    if order == "score":
        semantic = semantic + item_k @ item_q[0]
    score = semantic / math.sqrt(8) + recency_k @ recency_q[0] / math.sqrt(4)
    return np.argsort(-score.numpy(), kind="stable")


@pytest.mark.parametrize("judge", ["judged", "published"])
@pytest.mark.parametrize("order", ["score", "category and recency", "most recent"])
def test_curves_are_those_of_a_loop(order: str, judge: str) -> None:
    model = ranker()
    found = measure(model)[judge]
    expected, count = by_hand(model, order, judge)
    assert found["candidates"] == count > 10
    for name, curve in zip(("ndcg", "official", "recall"), expected, strict=True):
        assert found["orders"][order][name] == pytest.approx(curve, rel=1e-5), name


def test_ndcg_is_that_of_scikit_learn() -> None:
    from analysis.search_quality import _dcg, _first

    rng = np.random.default_rng(0)
    gain, score = torch.tensor(rng.random((8, 9))), torch.tensor(rng.random((8, 9)))
    for k in range(1, 7):
        found = (_dcg(_first(score, gain, k)) / _dcg(_first(gain, gain, k)))[:, -1].mean()
        assert float(found) == pytest.approx(ndcg_score(gain.numpy(), score.numpy(), k=k))


def test_a_random_order_is_the_mean_over_all_orders() -> None:
    import itertools

    from analysis.search_quality import _dcg, _expected, _first

    gain = torch.tensor([[0.0, 3.0, 1.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    orders = [torch.tensor([[*order, -math.inf]]) for order in itertools.permutations((1.0, 2, 3))]
    mean = torch.stack([_dcg(_first(order, gain, 4)) for order in orders]).mean(0)
    torch.testing.assert_close(_expected(gain, mask, 4)[0], mean)


def test_an_exact_search_is_the_order_of_its_score() -> None:
    found = measure(ranker())
    assert found["exact_search"]
    assert found["agreement_with_exact"] == pytest.approx(1)
    orders = found["judged"]["orders"]
    for name in ("ndcg", "official", "recall"):
        assert orders["search"][name] == pytest.approx(orders["score"][name], rel=1e-6)


def test_a_search_that_takes_the_most_recent_agrees_as_often_as_they_are_best() -> None:
    model = ranker()

    def most_recent(output: Any) -> Any:
        recency = torch.arange(1, K + 1).expand(output.recency.shape) * (output.recency > 0)
        weights = (output.recency > 0) / recency.clamp(min=1)
        return output._replace(recency=recency, weights=weights)

    found = measure(model, change=most_recent)
    requests, _ = random_requests(1, 60)
    shares = []
    for history, candidates in requests:
        for item in candidates:
            if history:
                size = min(K, len(history))
                best = order_by_hand(model, "score", item, history)[:size]
                recent = np.arange(len(history))[::-1][:size]
                shares.append(len(set(best) & set(recent)) / size)
    assert found["agreement_with_exact"] == pytest.approx(np.mean(shares), rel=1e-6)
    orders = found["judged"]["orders"]
    assert orders["search"]["ndcg"] == pytest.approx(orders["most recent"]["ndcg"])


def test_a_search_of_clusters_has_no_order_of_events() -> None:
    model = ranker()
    model.config = SimpleNamespace(**dataclasses.asdict(model.config))
    model.config.search = "clusters"
    quality = SearchQuality(model, counted(), ENOUGH, torch.device("cpu"))
    assert "search" not in quality.orders
    assert "score" in quality.orders


def test_without_enough_counts_nothing_is_judged() -> None:
    def of_rank(rank: int, world_size: int) -> dict[str, Any]:
        model = ranker()
        quality = SearchQuality(model, counted(), Enough(), torch.device("cpu"))
        batch = batch_of(random_requests(1, 5)[0], CATEGORY)
        quality.update(forward(model, batch), batch)
        return quality.to_json()

    found = run_ranks(of_rank, 1)[0]
    assert found["judged"]["candidates"] == 0
    assert found["judged"]["orders"]["score"]["ndcg"] is None


def test_the_interval_is_that_of_a_bootstrap_over_users() -> None:
    """Against scipy's, on ratios of sums."""
    random = np.random.default_rng(3)
    counts = random.integers(1, 6, 200).astype(float)
    found = counts * random.uniform(0.2, 0.9, 200)
    ((low, high),) = _intervals(np.stack([counts, found], axis=1))
    expected = bootstrap(
        (counts, found),
        lambda c, f, axis: f.sum(axis) / c.sum(axis),
        paired=True, method="percentile", n_resamples=5000, rng=1,
    ).confidence_interval  # fmt: skip
    assert low == pytest.approx(expected.low, abs=0.004)
    assert high == pytest.approx(expected.high, abs=0.004)


def test_the_interval_holds_the_mean() -> None:
    for order in measure(ranker())["judged"]["orders"].values():
        low, high = order["ndcg_interval"]
        assert low <= order["ndcg"][-1] <= high
        assert low < high
