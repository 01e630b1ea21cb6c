"""The ranker agrees with the formulas: logits, losses, statistics and every gradient."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from modules.ranker import LifelongRanker
from tests.modules.cases import (
    LENGTHS,
    fields_for,
    make_config,
    make_ranker,
    make_requests,
    pack,
    train_step,
)
from tests.modules.reference import Answer, Reference

SEED = 5

sharings = pytest.mark.parametrize("sharing", ["decoupled", "shared"])
auxiliaries = pytest.mark.parametrize("auxiliary", ["full", "sampled", "none"])
scores = pytest.mark.parametrize("score", ["dot", "cosine"])
target_awareness = pytest.mark.parametrize("target_aware", [True, False])


def reference_of(ranker: LifelongRanker) -> Reference:
    fields = fields_for(ranker.config.sharing)
    return Reference(ranker.config, fields, ranker.state_dict(), ranker.training)


def assert_close(actual: Tensor, expected: Tensor, name: str, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        actual.detach().double(),
        expected.detach().double(),
        rtol=tolerance,
        atol=tolerance,
        msg=lambda text: f"{name}: {text}",
    )


def assert_all_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-10
) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, name, tolerance)


def assert_trains_as(
    ranker: LifelongRanker, tolerance: float, lengths: tuple[int, ...] = LENGTHS
) -> None:
    """One training step of both."""
    requests, reference = make_requests(lengths), reference_of(ranker)
    answer = reference.answer(requests, SEED)
    (answer.main + answer.auxiliary + answer.l2).backward()
    output, losses, gradients = train_step(ranker, requests, seed=SEED)
    assert_close(output.logits, answer.logits, "logits", tolerance)
    for name in ("main", "auxiliary", "l2"):
        assert_close(getattr(losses, name), getattr(answer, name), name, tolerance)
    if answer.auxiliary_logits is None:
        assert output.auxiliary_logits is None
    else:
        assert_close(output.auxiliary_logits, answer.auxiliary_logits, "auxiliary", tolerance)
    assert_chosen_close(output.recency, output.weights, answer, tolerance)
    assert_all_close(gradients, reference.gradients(), tolerance)
    assert_all_close(dict(ranker.named_buffers()), reference.statistics, tolerance)


def assert_chosen_close(recency: Tensor, weights: Tensor, answer: Answer, tolerance: float) -> None:
    """Chosen events and their weights, padded with zeros to K."""
    for row, (ranks, expected) in enumerate(zip(answer.recency, answer.weights, strict=True)):
        padding = [0] * (recency.shape[1] - len(ranks))
        assert recency[row].tolist() == ranks + padding
        expected_row = torch.tensor(expected + padding, dtype=torch.float64)
        assert_close(weights[row], expected_row, f"weights of candidate {row}", tolerance)


@sharings
@auxiliaries
@scores
@target_awareness
def test_a_training_step_is_that_of_the_formulas(
    sharing: str, auxiliary: str, score: str, target_aware: bool
) -> None:
    config = make_config(
        sharing=sharing, auxiliary=auxiliary, score=score, target_aware=target_aware
    )
    assert_trains_as(make_ranker(config), tolerance=1e-10)


@sharings
@auxiliaries
@scores
def test_a_training_step_in_float32_is_that_of_the_formulas(
    sharing: str, auxiliary: str, score: str
) -> None:
    config = make_config(sharing=sharing, auxiliary=auxiliary, score=score)
    assert_trains_as(make_ranker(config, torch.float32), tolerance=2e-4)


@sharings
@auxiliaries
@scores
@target_awareness
def test_a_prediction_is_that_of_the_formulas(
    sharing: str, auxiliary: str, score: str, target_aware: bool
) -> None:
    config = make_config(
        sharing=sharing, auxiliary=auxiliary, score=score, target_aware=target_aware
    )
    ranker, requests = make_ranker(config).eval(), make_requests()
    answer = reference_of(ranker).answer(requests)
    before = {name: buffer.clone() for name, buffer in ranker.named_buffers()}
    output = ranker(**pack(requests))
    assert_close(output.logits, answer.logits, "logits")
    assert output.auxiliary_logits is None
    assert_chosen_close(output.recency, output.weights, answer, 1e-10)
    assert_all_close(dict(ranker.named_buffers()), before)


SHARINGS = ("decoupled", "shared", "projected", "three", "four")
MODELS = {
    "category": {"search": "category"},
    "category, no auxiliary": {"search": "category", "auxiliary": "none"},
    "category filled": {"search": "category_filled", "score": "dot"},
    "category filled, cosine": {"search": "category_filled", "auxiliary": "none"},
    "recent": {"search": "recent"},
    "recent, sampled": {"search": "recent", "auxiliary": "sampled"},
    "soft": {"search": "soft"},
    "simhash": {"search": "simhash", "hash_bits": 16},
    "simhash, dot": {"search": "simhash", "score": "dot", "auxiliary": "sampled"},
    "simhash, items": {"search": "simhash", "hash_recency": False, "auxiliary": "none"},
    "clusters": {"search": "clusters"},
    "clusters, dot": {"search": "clusters", "score": "dot", "auxiliary": "none"},
    "all": {"search": "all", "auxiliary": "none"},
    "mlp": {"score": "mlp"},
    "mlp, sampled": {"score": "mlp", "auxiliary": "sampled"},
    "mlp, all": {"score": "mlp", "search": "all", "auxiliary": "none"},
}
WHOLE = {
    "collisions": {"pooling": "collisions", "score": "dot"},
    "collisions, cosine": {"pooling": "collisions", "hash_groups": 5, "hash_group_bits": 2},
    "mean": {"pooling": "mean"},
}
windows = pytest.mark.parametrize("short_window", [0, 3])


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("model", MODELS)
@windows
def test_every_model_trains_as_its_formulas(model: str, sharing: str, short_window: int) -> None:
    changes = {"score": "cosine"} | MODELS[model]
    config = make_config(sharing=sharing, short_window=short_window, **changes)
    assert_trains_as(make_ranker(config), tolerance=1e-10)


@pytest.mark.parametrize("model", WHOLE)
@windows
def test_every_pooling_trains_as_its_formula(model: str, short_window: int) -> None:
    changes = {"score": "cosine", "search": "all", "auxiliary": "none"} | WHOLE[model]
    config = make_config(sharing="shared", short_window=short_window, **changes)
    assert_trains_as(make_ranker(config), tolerance=1e-10)


@pytest.mark.parametrize("auxiliary", ["full", "sampled"])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_projected_events_and_short_windows_train_as_the_formulas(
    auxiliary: str, sharing: str
) -> None:
    config = make_config(
        auxiliary=auxiliary, sharing=sharing, projection="event", short_window=5, score="cosine"
    )
    assert_trains_as(make_ranker(config), tolerance=1e-10)


@pytest.mark.parametrize("model", [*MODELS, *WHOLE])
def test_every_model_predicts_as_its_formulas(model: str) -> None:
    changes = {"score": "cosine", "sharing": "decoupled"} | MODELS.get(model, {})
    if model in WHOLE:
        changes |= {"search": "all", "auxiliary": "none", "sharing": "shared"} | WHOLE[model]
    ranker, requests = make_ranker(make_config(**changes)).eval(), make_requests()
    answer = reference_of(ranker).answer(requests)
    output = ranker(**pack(requests))
    assert_close(output.logits, answer.logits, "logits")
    assert_chosen_close(output.recency, output.weights, answer, 1e-10)


@auxiliaries
def test_a_batch_without_any_history_trains_as_the_formulas(auxiliary: str) -> None:
    assert_trains_as(make_ranker(make_config(auxiliary=auxiliary)), 1e-10, lengths=(0, 0, 0))


@auxiliaries
@pytest.mark.parametrize("hidden", [(), (7,), (6, 5, 4)])
def test_a_head_of_any_depth_trains_as_the_formulas(
    auxiliary: str, hidden: tuple[int, ...]
) -> None:
    config = make_config(auxiliary=auxiliary, hidden=hidden, auxiliary_hidden=hidden)
    assert_trains_as(make_ranker(config), 1e-10, lengths=(3, 12, 0))
