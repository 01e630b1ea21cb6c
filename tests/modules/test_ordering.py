"""Rows in order, against Python's own sorting."""

from __future__ import annotations

import math

import pytest
import torch

from modules.ordering import ascending, highest

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf, 1.0, -1.0]


def by_hand(row: list[float], k: int) -> list[int]:
    """Of equal ones the last first."""
    return sorted(range(len(row)), key=lambda place: (row[place], place), reverse=True)[:k]


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("distinct", [3, 10**6])
def test_the_highest_are_those_of_a_sort(k: int, distinct: int) -> None:
    torch.manual_seed(k)
    values = (torch.randint(0, distinct, (3, 4, 40)) - distinct / 2) / 7
    found = highest(values, k)
    assert found.shape == (3, 4, k)
    for row, places in zip(values.view(12, 40).tolist(), found.view(12, k).tolist(), strict=True):
        assert places == by_hand(row, k)


def test_extreme_numbers_are_in_order() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        values = torch.tensor(SPECIAL)[torch.randperm(len(SPECIAL))]
        found = values[highest(values, len(SPECIAL))]
        assert found.tolist() == sorted(values.tolist(), reverse=True)
        assert highest(values, 3).tolist() == values.topk(3).indices.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_sorted_too(dtype: torch.dtype) -> None:
    values = torch.randperm(50)[None].to(dtype)
    assert highest(values, 5)[0].tolist() == by_hand(values[0].tolist(), 5)


def test_a_view_of_a_larger_tensor_is_not_touched() -> None:
    values = torch.randn(6, 30).T
    before = values.clone()
    for row, places in zip(before.tolist(), highest(values, 4).tolist(), strict=True):
        assert places == by_hand(row, 4)
    torch.testing.assert_close(values, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_rows_ascend(dtype: torch.dtype) -> None:
    values = torch.randint(-1000, 1000, (5, 33)).to(dtype)
    assert ascending(values).tolist() == [sorted(row) for row in values.tolist()]


def test_nothing_is_differentiated() -> None:
    values = torch.randn(2, 9, requires_grad=True)
    assert not highest(values, 3).requires_grad
    assert not ascending(values).requires_grad
