"""Mutual information against scikit-learn and against a loop by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from analysis.mutual_information import Axes, InformationCounts, mutual_information, recency_edges
from tests.analysis.small_batches import batch_of, random_requests

CATEGORY = {item: 1 + item % 3 for item in range(1, 20)}


@pytest.mark.parametrize("seed", range(5))
def test_the_formula_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 500)
    present = (rng.random(500) < 0.2 + 0.3 * label).astype(int)
    total = torch.tensor(np.bincount(label, minlength=2))
    with_event = torch.tensor(np.bincount(label[present == 1], minlength=2))
    found = float(mutual_information(with_event, total))
    assert found == pytest.approx(mutual_info_score(present, label) / math.log(2), rel=1e-9)


def test_a_missing_count_says_almost_nothing_by_itself() -> None:
    # never present: nothing to learn
    assert float(mutual_information(torch.tensor([0, 0]), torch.tensor([50, 50]))) < 1e-4
    # present exactly with a click: all of the label's one bit
    certain = float(mutual_information(torch.tensor([0, 50]), torch.tensor([50, 50])))
    assert certain == pytest.approx(1, abs=1e-4)


def test_counts_are_those_of_a_loop() -> None:
    # ranks 1 and 2 alone, 3 and 4 together; older ones are not counted
    axes = Axes(np.array([2, 1]), np.array([3, 1]), np.array([1, 2, 3, 5]), 4)
    requests, labels = random_requests(0, 60, items=20, longest=7)
    counts = InformationCounts(axes, torch.device("cpu"))
    half = sum(len(candidates) for _, candidates in requests[:30])
    counts.update(batch_of(requests[:30], CATEGORY, labels[:half]))
    counts.update(batch_of(requests[30:], CATEGORY, labels[half:]))
    cells, totals = np.zeros((2, 2, 3, 2), int), np.zeros((2, 3, 2), int)
    candidates_of, label = np.zeros((2, 2), int), iter(labels)
    for history, candidates in requests:
        for candidate in candidates:
            y, c = next(label), CATEGORY[candidate]
            if c not in (1, 2):
                continue
            t = [2, 1].index(c)
            candidates_of[t, y] += 1
            for rank, item in enumerate(reversed(history[-4:]), start=1):
                p = (0, 1, 2, 2)[rank - 1]
                totals[t, p, y] += 1
                if CATEGORY[item] in (1, 3):
                    cells[t, [3, 1].index(CATEGORY[item]), p, y] += 1
    np.testing.assert_array_equal(counts.cells.numpy(), cells)
    np.testing.assert_array_equal(counts.totals.numpy(), totals)
    np.testing.assert_array_equal(counts.candidates.numpy(), candidates_of)


def test_information_of_a_cell_is_that_of_its_rows() -> None:
    axes = Axes(np.array([1]), np.array([1, 2, 3]), np.array([1, 2]), 4)
    requests, labels = random_requests(0, 200, items=20, longest=7)
    counts = InformationCounts(axes, torch.device("cpu"))
    counts.update(batch_of(requests, CATEGORY, labels))
    present, clicked, label = [], [], iter(labels)
    for history, candidates in requests:
        for candidate in candidates:
            y = next(label)
            if CATEGORY[candidate] == 1 and history:
                present.append(CATEGORY[history[-1]] == 2)
                clicked.append(y)
    expected = mutual_info_score(present, clicked) / math.log(2)
    assert float(counts.information()[0, 1, 0]) == pytest.approx(expected, rel=1e-6)
    assert bool(counts.certain(1)[0, 1, 0])
    assert not bool(counts.certain(1000)[0, 1, 0])


def test_where_counts_are_few_the_bin_is_widened() -> None:
    axes = Axes(np.array([1, 2]), np.array([1, 2, 3]), np.array([1, 2, 3, 5, 8]), 4)
    requests, labels = random_requests(0, 80, items=20, longest=7)
    counts = InformationCounts(axes, torch.device("cpu"))
    counts.update(batch_of(requests, CATEGORY, labels))
    least = 9
    found, known = counts.widened_until_certain(least)
    levels = set()
    for t in range(2):
        for b in range(3):
            for p in range(4):
                for level, bins in enumerate(([p], [p // 2 * 2, p // 2 * 2 + 1], range(4))):
                    present = sum(counts.cells[t, b, q] for q in bins)
                    total = sum(counts.totals[t, q] for q in bins)
                    if bool((present >= least).all()):
                        expected = float(mutual_information(present, total))
                        levels.add(level)
                        break
                else:
                    expected = 0.0
                    levels.add("none")
                assert float(found[t, b, p]) == pytest.approx(expected)
                assert bool(known[t, b, p]) == (expected > 0)
    assert {0, 1, 2} <= levels


def test_bins_cover_every_rank_once() -> None:
    for length in (1, 9, 10, 11, 200, 1600):
        edges = recency_edges(length)
        assert edges[0] == 1
        assert edges[-1] == length + 1
        assert (np.diff(edges) > 0).all()
