"""Mutual information of clusters and labels where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from analysis.discriminability import HeadInputs, bits, discriminability
from tests.analysis.small_batches import batch_of, random_requests
from tests.analysis.test_search_quality import CATEGORY, forward, ranker


def test_two_clusters_that_are_the_labels_say_all_of_them() -> None:
    rng = np.random.default_rng(0)
    label = np.tile([0, 1, 0, 0], 200)
    features = rng.normal(size=(800, 3)) * 0.1 + 5 * label[:, None]
    found = discriminability(features, label, np.arange(800) // 4, sizes=(2,), seeds=(1, 2))
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert found.bits == pytest.approx([entropy])
    assert found.bits_held_out == pytest.approx([entropy])
    assert found.normalized_held_out == pytest.approx([1])
    assert found.bits_of_shuffled_labels[0] < 0.02


def test_features_without_meaning_say_no_more_than_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(4000, 4)), rng.integers(0, 2, 4000)
    found = discriminability(features, label, np.arange(4000), sizes=(50, 500), seeds=(1, 2, 3))
    assert found.clusters == [50]  # 500 clusters of 2,000 candidates would have 4 each
    assert found.bits_held_out[0] == pytest.approx(found.bits_of_shuffled_labels[0], abs=0.01)


def test_bits_are_those_of_the_definition() -> None:
    cluster, label = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 0])
    expected = 0.0
    for c in (0, 1, 2):
        for y in (0, 1):
            joint = np.mean((cluster == c) & (label == y))
            if joint:
                expected += joint * math.log2(joint / np.mean(cluster == c) / np.mean(label == y))
    assert bits(cluster, label) == pytest.approx(expected)


def test_the_head_is_overheard_on_every_nth_request() -> None:
    model = ranker()
    requests, labels = random_requests(0, 10)
    batch = batch_of(requests, CATEGORY, labels)
    with torch.no_grad(), HeadInputs(model, every=3) as inputs:
        output = forward(model, batch)
        inputs.update(output, batch)
    rows = inputs.rows()
    kept = batch.request_of % 3 == 0
    assert rows[:, 0].tolist() == batch.request_of[kept].tolist()
    assert rows[:, 1].tolist() == batch.labels[kept].tolist()
    width = inputs.interest_width
    interest, whole = rows[:, 2 : 2 + width], rows[:, 2 + width :]
    assert whole.shape[1] == 3 * width
    torch.testing.assert_close(whole[:, width : 2 * width], interest)
    with torch.no_grad():
        click, no_click = model.head.layers(whole).unbind(1)
    torch.testing.assert_close(click - no_click, output.logits[kept])
