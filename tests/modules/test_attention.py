"""Exact attention, over chosen events and over whole histories."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modules.attention import attend_all, attend_chosen, masked_softmax
from modules.jagged import blocks

LENGTHS = torch.tensor([0, 3, 1, 30, 5, 0])
COUNTS = torch.tensor([2, 1, 3, 2, 6, 1])


def test_masked_softmax_is_the_softmax_of_what_is_there() -> None:
    scores = torch.tensor([[1.0, 2.0, 50.0], [-3.0e38, 0.0, 0.0], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights[0, :2], torch.tensor([1.0, 2.0]).softmax(0))
    assert weights[0, 2] == 0
    assert weights[1].tolist() == [1, 0, 0]
    assert weights[2].tolist() == [0, 0, 0]


def test_chosen_events_are_attended_as_torch_does() -> None:
    queries, keys, values = torch.randn(4, 6), torch.randn(4, 3, 6), torch.randn(4, 3, 5)
    valid = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    out, weights = attend_chosen(queries, keys, values, valid)
    expected = F.scaled_dot_product_attention(
        queries[:3, None], keys[:3], values[:3], valid[:3, None], scale=1.0
    )
    torch.testing.assert_close(out[:3], expected[:, 0])
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert not weights[~valid].any()
    # no history
    assert not out[3].any()


def test_an_event_of_log_weight_three_counts_three_times() -> None:
    scores = torch.randn(1, 2)
    weights = masked_softmax(scores + torch.tensor([[1.0, 3.0]]).log(), torch.ones(1, 2).bool())
    thrice = scores[:, [0, 1, 1, 1]].softmax(1)
    torch.testing.assert_close(weights, torch.stack([thrice[:, 0], thrice[:, 1:].sum(1)], 1))


@pytest.mark.parametrize("block_events", [1, 8, 65_536])
def test_whole_histories_are_attended_as_torch_does(
    block_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.jagged.BLOCK_EVENTS", block_events)
    queries, keys, values = torch.randn(15, 6), torch.randn(39, 6), torch.randn(39, 5)
    out = attend_all(queries, keys, values, blocks(LENGTHS, COUNTS, keys.device))
    per_request = zip(
        out.split(COUNTS.tolist()),
        queries.split(COUNTS.tolist()),
        keys.split(LENGTHS.tolist()),
        values.split(LENGTHS.tolist()),
        strict=True,
    )
    for actual, query, key, value in per_request:
        expected = torch.zeros(len(query), 5)
        if len(key):
            expected = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        torch.testing.assert_close(actual, expected)


def test_a_candidate_without_history_passes_no_gradient() -> None:
    queries, keys = torch.randn(2, 6, requires_grad=True), torch.randn(2, 3, 6, requires_grad=True)
    valid = torch.tensor([[True, True, True], [False, False, False]])
    out, _ = attend_chosen(queries, keys, torch.randn(2, 3, 5), valid)
    out.square().sum().backward()
    assert queries.grad[0].any()
    assert not queries.grad[1].any()
    assert not keys.grad[1].any()


@pytest.mark.parametrize("lengths", [(3, 3, 3), (3, 0, 3), (3, 1, 3)])
def test_equally_long_histories_are_read_where_they_lie(lengths: tuple[int, ...]) -> None:
    keys = torch.randn(sum(lengths), 4, dtype=torch.float64, requires_grad=True)
    queries = torch.randn(len(lengths), 4, dtype=torch.float64)
    of = list(
        blocks(torch.tensor(lengths), torch.ones_like(torch.tensor(lengths)), torch.device("cpu"))
    )
    pooled = attend_all(queries, keys, keys, of)
    expected = [
        (query @ own.T).softmax(0) @ own if len(own) else torch.zeros(4, dtype=torch.float64)
        for query, own in zip(queries, keys.split(lengths), strict=True)
    ]
    torch.testing.assert_close(pooled, torch.stack(expected))
    actual, wanted = (
        torch.autograd.grad(y.square().sum(), keys) for y in (pooled, torch.stack(expected))
    )
    torch.testing.assert_close(actual, wanted)
