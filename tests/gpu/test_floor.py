"""The floor of the GPU benchmark, counted by hand; needs no GPU."""

from __future__ import annotations

import pytest

from benchmarks.gpu.floor import Ceilings, Shape, counts, seconds

# 10 candidates, 7 events of 3 + 2 * 4 bytes searched, 2 kept, 5 numbers of 4 bytes represent
SHAPE = Shape(
    candidates=10,
    history=7,
    top_k=2,
    attention_dim=2,
    representation_dim=5,
    bytes_per_event=3,
    hidden=(6, 1),
)
SEARCH = 10 * 7 * (3 + 2 * 4) + 8 * 10 * 2


def test_the_stages_of_a_step_are_counted() -> None:
    served = SEARCH + 10 * 2 * 5 * 4
    # gradient of the weights, sort, and reading and writing a row of both tables with their state
    backward = 10 * ((5 * 4 + 8) + 64 + (2 * 7 * 4 + 16))
    in_full = SEARCH + 10 * 7 * 5 * 4 + 7 * backward
    assert counts("search", SHAPE) == (SEARCH, 0, 0)
    assert counts("serve", SHAPE) == (served, 2 * 10 * 7 * 4, 2 * 10 * 6)
    assert counts("none", SHAPE) == (served + 2 * backward, 6 * 10 * 7 * 4, 3 * 2 * 10 * 6)
    assert counts("full", SHAPE)[0] == in_full


@pytest.mark.parametrize(("multiply", "head"), [(1.0, 120.0), (1e9, 56.0)])
def test_the_head_takes_its_bytes_or_its_products(multiply: float, head: float) -> None:
    # at 10 bytes a second
    served, _, _ = counts("serve", SHAPE)
    ceilings = Ceilings(copy=10.0, multiply=multiply, multiply_bfloat16=0.0)
    assert seconds("serve", SHAPE, ceilings) == pytest.approx(served / 10 + head)
