"""The score is the plain product of a scaled query and key."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modules.score import Score
from modules.tables import FieldConfig

ITEM = FieldConfig(name="item", num_embeddings=9, attention_dim=3)
CATEGORY = FieldConfig(name="category", num_embeddings=9, attention_dim=1)
RECENCY = FieldConfig(name="recency", num_embeddings=9, attention_dim=9, semantic=False)


def test_dot_scales_the_two_groups_apart() -> None:
    query = torch.cat([torch.ones(4), torch.ones(9)])
    key = torch.cat([torch.full((4,), 2.0), torch.full((9,), 3.0)])
    score = Score((ITEM, CATEGORY, RECENCY))
    # <q_s, k_s> = 8 by sqrt(4), <q_t, k_t> = 27 by sqrt(9)
    assert score.query(query) @ score.key(key) == 4.0 + 9.0


def test_cosine_replaces_the_semantic_term() -> None:
    query, key = torch.randn(5, 13), torch.randn(5, 13)
    score = Score((ITEM, CATEGORY, RECENCY), "cosine", temperature=6.0)
    actual = (score.query(query) * score.key(key)).sum(1)
    semantic = 6.0 * F.cosine_similarity(query[:, :4], key[:, :4])
    temporal = (query[:, 4:] * key[:, 4:]).sum(1) / 3
    torch.testing.assert_close(actual, semantic + temporal)


def test_cosine_of_the_same_event_is_the_temperature() -> None:
    row = 100 * torch.randn(4, 4)
    score = Score((ITEM, CATEGORY), "cosine", temperature=2.5)
    same = (score.query(row) * score.key(row)).sum(1)
    torch.testing.assert_close(same, torch.full((4,), 2.5))


def test_the_temperature_is_trained() -> None:
    score = Score((ITEM, CATEGORY), "cosine", temperature=2.5)
    (score.query(torch.ones(1, 4)) * score.key(torch.ones(1, 4))).sum().backward()
    torch.testing.assert_close(score.temperature.grad, torch.ones(1))
    assert not list(Score((ITEM, CATEGORY)).parameters())


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        # rows of twos: 9 x 4 by sqrt(9); 4 x 4 by sqrt(4); parallel rows
        ("dot", (RECENCY,), 12.0),
        ("cosine", (RECENCY,), 12.0),
        ("dot", (ITEM, CATEGORY), 8.0),
        ("cosine", (ITEM, CATEGORY), 6.0),
    ],
)
def test_one_group_may_be_missing(
    kind: str, fields: tuple[FieldConfig, ...], expected: float
) -> None:
    row, score = torch.full((sum(f.attention_dim for f in fields),), 2.0), Score(fields, kind)
    assert (score.query(row) @ score.key(row)).item() == pytest.approx(expected)


def test_a_zero_row_has_cosine_zero_and_finite_gradients() -> None:
    score, row = Score((ITEM, CATEGORY), "cosine"), torch.zeros(1, 4, requires_grad=True)
    value = (score.query(torch.ones(1, 4)) * score.key(row)).sum()
    value.backward()
    assert value == 0
    assert row.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize(
    ("fields", "unused"),
    [
        ((ITEM, CATEGORY, RECENCY), frozenset()),
        ((ITEM, CATEGORY, RECENCY), frozenset({"category"})),
        ((ITEM, CATEGORY, RECENCY), frozenset({"recency"})),
        ((ITEM, CATEGORY, RECENCY), frozenset({"item", "category"})),
        ((ITEM,), frozenset()),
        ((RECENCY,), frozenset()),
    ],
)
def test_rows_that_lie_apart_score_as_joined(
    kind: str, fields: tuple[FieldConfig, ...], unused: frozenset[str]
) -> None:
    torch.manual_seed(0)
    rows = [torch.randn(2, 7, field.attention_dim) for field in fields]
    rows[0][0, 3] = 0  # a row of zeros has no direction
    score = Score(fields, kind, unused=unused)
    queries = score.query(torch.randn(2, 3, sum(field.attention_dim for field in fields)))
    expected = score(queries, score.key(torch.cat(rows, dim=-1)))
    torch.testing.assert_close(score.of_fields(queries, rows), expected)
