"""How the head starts, and what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modules.head import InterestHead

WIDTH, HIDDEN = 48, (200, 80)


def layers_of(head: InterestHead, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in head.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(("target_aware", "inputs"), [(True, 144), (False, 96)])
def test_the_layers_are_those_of_dare(target_aware: bool, inputs: int) -> None:
    head = InterestHead(WIDTH, HIDDEN, target_aware)
    kinds = [nn.BatchNorm1d, nn.Linear, nn.PReLU, nn.Linear, nn.PReLU, nn.Linear]
    assert [type(layer) for layer in head.layers] == kinds
    shapes = [tuple(layer.weight.shape) for layer in layers_of(head, nn.Linear)]
    assert shapes == [(200, inputs), (80, 200), (2, 80)]


def test_linear_weights_start_small_and_normal() -> None:
    for layer in layers_of(InterestHead(WIDTH, HIDDEN), nn.Linear)[:2]:
        # standard error of a standard deviation: std / sqrt(2 n), n >= 16,000
        assert abs(layer.weight.std() - 0.01) < 4 * 0.01 / (2 * 16_000) ** 0.5
        assert abs(layer.weight.mean()) < 4 * 0.01 / 16_000**0.5
        # a uniform draw of this spread would end at 0.0173
        assert layer.weight.abs().max() > 0.025


def test_gains_start_at_one_and_slopes_at_a_tenth() -> None:
    head = InterestHead(WIDTH, HIDDEN)
    (norm,) = layers_of(head, nn.BatchNorm1d)
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()
    slopes = [layer.weight.tolist() for layer in layers_of(head, nn.PReLU)]
    assert slopes == [[pytest.approx(0.1)], [pytest.approx(0.1)]]


def test_official_init_draws_gains_and_slopes_too() -> None:
    head = InterestHead(WIDTH, HIDDEN, official_init=True)
    (norm,) = layers_of(head, nn.BatchNorm1d)
    assert abs(norm.weight.std() - 0.01) < 4 * 0.01 / (2 * 144) ** 0.5
    assert norm.bias.eq(0).all()
    assert all(0 < abs(layer.weight.item()) < 0.05 for layer in layers_of(head, nn.PReLU))


def test_linear_biases_keep_torchs_start() -> None:
    bias = layers_of(InterestHead(WIDTH, HIDDEN), nn.Linear)[0].bias
    # uniform within 1 / sqrt(144): standard deviation 0.0481
    assert 0.08 < bias.abs().max() <= 1 / 12
    assert abs(bias.std() - 1 / 12 / 3**0.5) < 0.01


@pytest.mark.parametrize("target_aware", [True, False])
def test_the_logit_is_click_minus_no_click_of_the_features(target_aware: bool) -> None:
    head = InterestHead(3, (), target_aware).eval()
    targets, interests = torch.randn(4, 3), torch.randn(4, 3)
    (norm,), (last,) = layers_of(head, nn.BatchNorm1d), layers_of(head, nn.Linear)
    features = [targets, interests, targets * interests][: 3 if target_aware else 2]
    # running statistics start at mean 0 and variance 1
    outputs = torch.cat(features, 1) / (1 + norm.eps) ** 0.5 @ last.weight.T + last.bias
    torch.testing.assert_close(head(targets, interests), outputs[:, 0] - outputs[:, 1])
