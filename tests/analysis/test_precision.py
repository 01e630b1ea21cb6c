"""What fewer bits change, on a model whose numbers can be counted by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from analysis.precision import compare_precision
from tests.ranks import run_ranks


def compare(rows: list[list[float]], dtype: torch.dtype, weight: list[float]) -> dict:
    """Each row is a batch of one candidate; its logit is the product with ``weight``, the loss its
    half square.
    """

    def measure(rank: int, world_size: int) -> dict:
        linear = nn.Linear(len(weight), 1, bias=False)
        linear.weight.data.copy_(torch.tensor([weight]))

        def step(batch: SimpleNamespace) -> tuple[SimpleNamespace, Tensor]:
            logits = linear(batch.x).squeeze(1)
            return SimpleNamespace(logits=logits), (logits.float() ** 2).sum() / 2

        batches = [SimpleNamespace(x=torch.tensor([r]), labels=torch.zeros(1)) for r in rows]
        found = compare_precision(linear, batches, step, dtype)
        assert linear.weight.grad is None
        assert linear.weight.tolist() == [weight]
        return found

    return run_ranks(measure, 1)[0]


def test_norms_are_those_of_the_gradient() -> None:
    rows, weight = [[1.0, 2.0], [0.5, -1.0]], [2.0, 0.25]
    found = compare(rows, torch.bfloat16, weight)  # all of them exact in both types
    norms = [
        abs(sum(x * w for x, w in zip(row, weight, strict=True))) * math.hypot(*row) for row in rows
    ]
    for dtype in ("float32", "bfloat16"):
        assert found[dtype]["gradient_norm"] == pytest.approx(norms)
        counts = ("logits", "not_finite_logits", "gradients", "not_finite_gradients")
        assert [found[dtype][name] for name in counts] == [2, 0, 4, 0]
    assert found["bfloat16"]["logit_difference"] == 0
    assert found["bfloat16"]["gradient_cosine"] == pytest.approx(1)


def test_rounding_is_seen() -> None:
    found = compare([[1.0, 1.0]], torch.bfloat16, [1.0, 2.0**-9])["bfloat16"]
    assert found["logit_difference"] == pytest.approx(2.0**-9)  # 8 bits: the second is lost


def test_what_overflows_is_counted() -> None:
    found = compare([[300.0, 1.0], [1.0, 1.0]], torch.float16, [300.0, 1.0])
    assert found["float32"]["not_finite_logits"] == 0
    assert found["float16"]["not_finite_logits"] == 1  # 90,001, where 65,504 is the most
    assert found["float16"]["not_finite_gradients"] == 2
    assert math.isinf(found["float16"]["logit_difference"])


def test_counts_are_of_all_ranks() -> None:
    def measure(rank: int, world_size: int) -> dict:
        torch.manual_seed(0)
        linear = nn.Linear(2, 1, bias=False)

        def step(batch: SimpleNamespace) -> tuple[SimpleNamespace, Tensor]:
            logits = linear(batch.x).squeeze(1)
            return SimpleNamespace(logits=logits), logits.sum()

        size = 1 + 2 * rank
        batch = SimpleNamespace(x=torch.ones(size, 2), labels=torch.zeros(size))
        return compare_precision(linear, [batch], step)["float32"]

    for found in run_ranks(measure, 2):
        assert found["logits"] == 4
