"""The objective, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modules.loss import l2_penalty, ranking_losses, regularized_parameters
from modules.ranker import RankerOutput
from tests.modules.cases import make_config, make_ranker

LABELS = torch.tensor([1.0, 0.0, 0.0])
# log odds: p(click) = 3/4, 1/2, 1/5
LOGITS = torch.tensor([3.0, 1.0, 1 / 4]).log()
AUXILIARY_LOGITS = torch.tensor([1.0, 1 / 3, 1.0]).log()
# -log of the label's p: 3/4 x 1/2 x 4/5 = 3/10 and 1/2 x 3/4 x 1/2 = 3/16
SUM, AUXILIARY_SUM = math.log(10 / 3), math.log(16 / 3)


def output(auxiliary_logits: Tensor | None = AUXILIARY_LOGITS) -> RankerOutput:
    none = torch.zeros(3, 0)
    return RankerOutput(LOGITS, auxiliary_logits, none, none)


def losses(**changes: object) -> tuple[float, float, float]:
    arguments = {"output": output(), "labels": LABELS, "regularized": []}
    arguments |= {"num_candidates": 3, **changes}
    found = ranking_losses(**arguments)
    assert found.total() == sum(found)
    return tuple(term.item() for term in found)


def test_both_cross_entropies_are_means_over_candidates() -> None:
    assert losses() == pytest.approx((SUM / 3, AUXILIARY_SUM / 3, 0), rel=1e-6)


def test_the_denominator_is_the_callers() -> None:
    expected = (SUM / 5, AUXILIARY_SUM / 5, 0)
    assert losses(num_candidates=5) == pytest.approx(expected, rel=1e-6)


def test_the_auxiliary_term_is_weighted() -> None:
    expected = (SUM / 3, 0.25 * AUXILIARY_SUM / 3, 0)
    assert losses(auxiliary_weight=0.25) == pytest.approx(expected, rel=1e-6)


def test_no_auxiliary_head_has_no_auxiliary_loss() -> None:
    assert losses(output=output(None)) == pytest.approx((SUM / 3, 0, 0), rel=1e-6)


@pytest.mark.parametrize("l2", [0.0, 1e-6, 0.5])
def test_the_penalty_is_weighted(l2: float) -> None:
    ranker = make_ranker(make_config())
    penalty = l2_penalty(regularized_parameters(ranker)).item()
    assert losses(regularized=regularized_parameters(ranker), l2=l2)[2] == pytest.approx(
        l2 * penalty, rel=1e-6
    )


@pytest.mark.parametrize("auxiliary", ["full", "sampled", "none"])
def test_weights_gains_and_slopes_of_the_heads_are_penalised(auxiliary: str) -> None:
    ranker = make_ranker(make_config(auxiliary=auxiliary, score="cosine"))
    l2_penalty(regularized_parameters(ranker)).backward()
    penalised = {
        name for name, p in ranker.named_parameters() if p.grad is not None and p.grad.any()
    }
    # batch norm, linear, slope, ..., linear
    expected = {f"head.layers.{layer}.weight" for layer in range(6)}
    if auxiliary != "none":
        expected |= {f"auxiliary_head.layers.{layer}.weight" for layer in range(4)}
    assert penalised == expected


def test_the_penalty_is_a_sum_of_squares() -> None:
    ranker = make_ranker(make_config(auxiliary="none"))
    weights = [ranker.head.layers[layer].weight.flatten().tolist() for layer in range(6)]
    expected = sum(value**2 for flat in weights for value in flat)
    assert l2_penalty(regularized_parameters(ranker)).item() == pytest.approx(expected, rel=1e-12)
