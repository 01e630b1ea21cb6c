"""Scores and sums of joint rows, and their gradients, against autograd's of the parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modules.attention import score_chosen
from modules.joint_rows import JointRows, joint_scores, joint_sums
from modules.score import Score, ScoreKind
from modules.tables import FieldConfig

S, P = 5, 3
FIELDS = (
    FieldConfig(name="item", num_embeddings=9, attention_dim=4),
    FieldConfig(name="recency", num_embeddings=9, attention_dim=2, semantic=False),
)
KINDS: tuple[ScoreKind, ...] = ("dot", "cosine")


def draw_rows(width: int = 6, count: int = S) -> JointRows:
    rows = torch.randn(count * (P + 1), width, dtype=torch.float64, requires_grad=True)
    return JointRows(rows, count * P, P)


def of_parts(joint: JointRows, score: Score) -> Tensor:
    events, candidates = joint.parts
    return score_chosen(score.query(candidates), score.key(events.unflatten(0, (-1, P))), score)


def gradients(made: Tensor | tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Of a sum with fixed weights, another for each number."""
    made = made if isinstance(made, tuple) else (made,)
    total = sum((part * torch.arange(1.0, part.numel() + 1).view_as(part)).sum() for part in made)
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_their_gradients_are_those_of_the_parts(kind: ScoreKind) -> None:
    joint, score = draw_rows(), Score(FIELDS, kind).double()
    inputs = [joint.rows, *score.parameters()]
    assert len(inputs) == 1 + (kind == "cosine")
    actual, expected = joint_scores(joint, score), of_parts(joint, score)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_scores_are_slopes(kind: ScoreKind) -> None:
    joint, score = draw_rows(), Score(FIELDS, kind).double()

    def scores(rows: Tensor) -> Tensor:
        return joint_scores(JointRows(rows, S * P, P), score)

    assert torch.autograd.gradcheck(scores, [joint.rows])


def test_keys_without_length_have_the_gradient_that_autograd_gives_them() -> None:
    joint, score = draw_rows(), Score(FIELDS, "cosine").double()
    with torch.no_grad():
        joint.rows[0, :4] = 0
        joint.rows[1, :4] = torch.tensor([1e-14, 0, -3e-14, 0])  # shorter than what it divides by
    actual = gradients(joint_scores(joint, score), [joint.rows])
    torch.testing.assert_close(actual, gradients(of_parts(joint, score), [joint.rows]))


def draw_weights(sums: int, count: int = S) -> Tensor:
    return torch.randn(count, sums, P, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("sums", [1, 2, 3])
def test_sums_and_their_gradients_are_those_of_the_parts(sums: int) -> None:
    joint, weights = draw_rows(), draw_weights(sums)
    events, candidates = joint.parts
    expected = candidates, torch.einsum("shp,spr->shr", weights, events.unflatten(0, (S, P)))
    actual = joint_sums(joint, weights)
    torch.testing.assert_close(actual, expected)
    inputs = [joint.rows, weights]
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


def test_gradients_of_sums_are_slopes() -> None:
    def sums(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return joint_sums(JointRows(rows, S * P, P), weights)

    assert torch.autograd.gradcheck(sums, [draw_rows().rows, draw_weights(2)])


@pytest.mark.parametrize(
    "make",
    [
        lambda joint: joint_scores(joint, Score(FIELDS, "cosine").double()),
        lambda joint: joint_sums(joint, draw_weights(2, 0))[1],
    ],
)
def test_a_rank_without_candidates_has_gradients_too(make: Callable[[JointRows], Tensor]) -> None:
    joint = draw_rows(count=0)
    made = make(joint)
    assert len(made) == 0
    (grad,) = torch.autograd.grad(made.sum(), [joint.rows])
    assert grad.shape == (0, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_gradients_stay_those_of_the_rows_type(kind: ScoreKind) -> None:
    rows = draw_rows().rows.detach().float().requires_grad_()
    joint, score = JointRows(rows, S * P, P), Score(FIELDS, kind)
    exact = gradients(joint_scores(joint, score), [rows])[0]
    with torch.autocast("cpu", torch.bfloat16):
        scores = joint_scores(joint, score)
        _, sums = joint_sums(joint, scores.softmax(1)[:, None])
    (through_sums,) = torch.autograd.grad(sums.float().sum(), [rows], retain_graph=True)
    rounded = gradients(scores.float(), [rows])[0]
    assert rounded.dtype == through_sums.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.5)
