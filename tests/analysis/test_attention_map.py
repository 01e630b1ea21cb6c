"""Attention by category and recency against loops by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from analysis.attention_map import AttentionByPlace, correlations, place_attention
from analysis.mutual_information import Axes
from tests.analysis.small_batches import batch_of, random_requests
from tests.analysis.test_search_quality import CATEGORY, forward, ranker
from tests.ranks import run_ranks

CATEGORIES = np.array([3, 1])
# ranks 1, 2 to 3, 4 to 12
AXES = Axes(CATEGORIES, CATEGORIES, np.array([1, 2, 4, 13]), 7)


def test_measured_attention_is_that_of_a_loop() -> None:
    model = ranker()
    batch = batch_of(random_requests(0, 60)[0], CATEGORY)
    with torch.no_grad():
        output = forward(model, batch)

    def measure(rank: int, world_size: int) -> list:
        place = AttentionByPlace(AXES, torch.device("cpu"))
        place.update(output, batch)
        return place.mean(2).tolist()

    found = np.array(run_ranks(measure, 1)[0])
    weight, count = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    number = 0
    for history, candidates in random_requests(0, 60)[0]:
        for item in candidates:
            given = dict(
                zip(output.recency[number].tolist(), output.weights[number].tolist(), strict=True)
            )
            number += 1
            for rank, event in enumerate(reversed(history), start=1):
                if CATEGORY[item] in (3, 1) and CATEGORY[event] in (3, 1):
                    place = 0 if rank == 1 else 1 if rank < 4 else 2
                    cell = ((3, 1).index(CATEGORY[item]), (3, 1).index(CATEGORY[event]), place)
                    count[cell] += 1
                    weight[cell] += given.get(rank, 0.0)
    expected = np.where(count >= 2, weight / np.maximum(count, 1), np.nan)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isfinite(found).sum() > 6


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_the_grid_of_the_tables_is_a_softmax_of_the_score_without_items(kind: str) -> None:
    model = ranker(kind)
    found = place_attention(model, AXES, torch.device("cpu"))
    tables = {
        name.split(".")[-2]: weight.detach() for name, weight in model.tables.named_parameters()
    }
    category, recency = tables["attention_category"], tables["attention_recency"]
    for t, c in enumerate(CATEGORIES):
        scores = np.zeros((2, 12))
        for i, b in enumerate(CATEGORIES):
            for p in range(1, 13):
                semantic = float(category[c] @ category[b])
                if kind == "cosine":
                    semantic *= 6 / float(category[c].norm() * category[b].norm())
                else:
                    semantic /= math.sqrt(8)
                scores[i, p - 1] = semantic + float(recency[0] @ recency[p]) / 2
        weights = np.exp(scores) / np.exp(scores).sum()
        bins = (slice(0, 1), slice(1, 3), slice(3, 12))
        expected = np.stack([weights[:, ranks].mean(axis=1) for ranks in bins], axis=1)
        np.testing.assert_allclose(found[t], expected, rtol=1e-4)


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, (5, 6)).astype(float)
    b = a + rng.normal(size=(5, 6))
    pearson, spearman = correlations(a, b)
    assert pearson == pytest.approx(pearsonr(a.ravel(), b.ravel()).statistic)
    assert spearman == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    b[0, 0] = np.nan
    assert correlations(a, b)[0] == pytest.approx(pearsonr(a.ravel()[1:], b.ravel()[1:]).statistic)
    assert correlations(np.ones(5), np.arange(5.0)) == (None, None)
