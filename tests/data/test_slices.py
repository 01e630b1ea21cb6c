"""Slices of columns, against Python's own."""

from __future__ import annotations

import numpy as np
import pytest

from data.slices import copy_slices, count_down


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_slices_go_to_their_places(dtype: type[np.integer]) -> None:
    column = np.arange(10, dtype=dtype)
    column.setflags(write=False)  # as memory-mapped ones are
    out = np.full(8, -1)
    copy_slices(column, np.array([7, 2, 5]), np.array([3, 2, 0]), np.array([4, 1, 0]), out)
    assert out.tolist() == [-1, 2, 3, -1, 7, 8, 9, -1]


@pytest.mark.parametrize(
    ("begin", "length", "place"),
    [(-1, 2, 0), (9, 2, 0), (0, 5, 4), (3, -1, 0), (0, 1, -1), (2**63 - 50, 100, 0)],
)
def test_a_slice_outside_is_refused_before_anything_is_copied(
    begin: int, length: int, place: int
) -> None:
    out = np.full(8, -1)
    slices = (np.array([number, value]) for number, value in ((0, begin), (1, length), (7, place)))
    with pytest.raises(IndexError, match="a slice"):
        copy_slices(np.arange(10), *slices, out)
    assert (out == -1).all()


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(IndexError, match="-3 elements"):
        count_down(np.array([5, -3]))


def test_no_slices_are_nothing() -> None:
    nothing = np.empty(0, np.int64)
    copy_slices(np.arange(3), nothing, nothing, nothing, nothing)
    assert count_down(nothing).tolist() == []


def test_ranks_count_down_to_one() -> None:
    lengths = np.array([4, 0, 1, 2])
    expected = [rank for length in lengths for rank in range(length, 0, -1)]
    assert count_down(lengths).tolist() == expected
