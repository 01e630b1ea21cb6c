"""Losses and the models that need no graph."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from modules.retrieval import config as configs
from modules.retrieval.config import FactorsConfig, SelfAttentionConfig
from modules.retrieval.loss import Compared, Pairs, Windows, bpr, half_squares, sampled_softmax
from modules.retrieval.self_attention import SelfAttention
from modules.retrieval.vectors import MatrixFactorization, Popular

ATTENTION = SelfAttentionConfig(width=8, heads=2, hidden=8, history_length=4)


def test_bpr_of_one_place_is_its_formula() -> None:
    query, positive, negative = torch.tensor([[[1.0, 2.0]], [[0.5, 1.0]], [[2.0, -1.0]]])
    # scores 2.5 and 0
    expected = -math.log(1 / (1 + math.exp(-2.5)))
    assert float(bpr(Compared(query, positive, negative, ()))) == pytest.approx(expected)


def test_sampled_softmax_is_cross_entropy_without_accidental_hits() -> None:
    torch.manual_seed(0)
    queries, table = torch.randn(3, 4), torch.randn(10, 4)
    positives, negatives = torch.tensor([1, 2, 3]), torch.tensor([2, 7, 8, 9])
    found = sampled_softmax(
        Compared(queries, table[positives], table[negatives], ()), positives, negatives
    )
    losses = []
    for query, positive in zip(queries, positives.tolist(), strict=True):
        others = [item for item in negatives.tolist() if item != positive]
        scores = table[[positive, *others]] @ query
        losses.append(F.cross_entropy(scores[None], torch.tensor([0])))
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_l2_weighs_half_the_squares_per_place() -> None:
    rows = (torch.full((2, 3), 2.0), torch.ones(2, 3))
    compared = Compared(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), rows)
    assert float(half_squares(compared)) == (24 + 6) / 4


def test_factors_have_sparse_gradients_of_the_rows_of_the_batch() -> None:
    model = MatrixFactorization(4, 6, FactorsConfig(width=3))
    batch = Pairs(torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([5, 1]))
    bpr(model(batch)).backward()
    assert model.users.weight.grad.is_sparse and model.items.weight.grad.is_sparse
    assert model.users.weight.grad.coalesce().indices().tolist() == [[0, 2]]
    assert model.items.weight.grad.coalesce().indices().tolist() == [[1, 2, 5]]


def test_popular_gives_everyone_the_counts_exactly() -> None:
    counts = torch.tensor([0, 2**24 + 1, 2**24])
    vectors = Popular(counts, 2).encode(())
    assert (vectors.users @ vectors.items.T).tolist() == [[0, 2**24 + 1, 2**24]] * 2


def windows(events: list[list[int]], targets: list[list[int]]) -> Windows:
    items = torch.tensor(events)
    return Windows(items, items > 0, torch.tensor(targets), torch.tensor([5, 6, 7]))


def test_attention_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    model = SelfAttention(10, ATTENTION)
    before = model(windows([[0, 1, 2, 3]], [[0, 4, 4, 0]])).queries
    after = model(windows([[0, 1, 2, 9]], [[0, 4, 4, 0]])).queries
    torch.testing.assert_close(before, after)
    last = model(windows([[0, 1, 2, 9]], [[0, 0, 0, 4]])).queries
    assert not torch.allclose(last, model(windows([[0, 1, 2, 3]], [[0, 0, 0, 4]])).queries)


def test_a_user_s_vector_is_that_of_the_last_event_and_zero_without() -> None:
    torch.manual_seed(0)
    model = SelfAttention(10, ATTENTION)
    batch = windows([[1, 2, 3, 4], [0, 0, 0, 0]], [[0, 0, 0, 5], [0, 0, 0, 0]])
    vectors = model.encode([(batch.events, batch.valid)])
    torch.testing.assert_close(vectors.users[:1], model(batch).queries)
    torch.testing.assert_close(vectors.users[1], torch.zeros(8))
    assert vectors.items is model.items.weight


def test_attention_has_sparse_gradients_and_none_from_padding() -> None:
    model = SelfAttention(10, ATTENTION)
    batch = windows([[0, 0, 1, 2]], [[0, 0, 3, 4]])
    compared = model(batch)
    sampled_softmax(compared, batch.positives, batch.negatives).backward()
    gradient = model.items.weight.grad
    assert gradient.is_sparse
    rows = gradient.to_dense().abs().sum(1)
    assert rows.nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (configs.FactorsConfig, {"width": 0}, "width must be at least 1"),
        (configs.LightGCNConfig, {"layers": 0}, "layers must be at least 1"),
        (configs.NGCFConfig, {"dropout": 1.0}, "dropout must be from 0 to below 1"),
        (configs.GCMCConfig, {"init_std": math.nan}, "init_std must be positive"),
        (configs.SelfAttentionConfig, {"heads": 3}, "heads=3 do not divide the width 64"),
    ],
)
def test_a_wrong_setting_is_refused(make: type, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)
