"""The common interface: every preset, the sum of the parts, the norm of the input."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import Tensor, nn

from modules.crossing import PRESETS, CrossingConfig, make_crossing
from modules.crossing.network import CrossingNetwork, slice_norm

FIELDS, WIDTH = 6, 8


def some_inputs(candidates: int = 64) -> tuple[Tensor, Tensor]:
    fields = torch.randn(candidates, FIELDS, WIDTH, requires_grad=True)
    return fields, torch.randn(candidates, requires_grad=True)


def make(preset: str, **changes: object) -> nn.Module:
    return make_crossing(dataclasses.replace(PRESETS[preset](), **changes), FIELDS, WIDTH)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_and_input_gets_a_gradient(preset: str) -> None:
    network, (fields, first_order) = make(preset), some_inputs()
    logits = network(fields, first_order)
    assert logits.shape == (64,)
    logits.square().sum().backward()
    unreached = [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert unreached == []
    config = PRESETS[preset]()
    assert (fields.grad is not None) == config.reads_vectors
    assert (first_order.grad is not None) == config.linear


@pytest.mark.parametrize("preset", PRESETS)
def test_an_empty_batch_goes_through_forward_and_backward(preset: str) -> None:
    network, (fields, first_order) = make(preset), some_inputs(0)
    logits = network(fields, first_order)
    logits.sum().backward()
    assert logits.shape == (0,)
    for name, parameter in network.named_parameters():
        assert not parameter.grad.any(), name
    assert all(buffer.isfinite().all() for buffer in network.buffers())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_candidate_does_not_see_the_others(preset: str) -> None:
    network, (fields, first_order) = make(preset).eval(), some_inputs(7)
    alone = [network(fields[k : k + 1], first_order[k : k + 1]) for k in range(7)]
    torch.testing.assert_close(network(fields, first_order), torch.cat(alone))


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_start_finite_and_moderate_also_with_normalized_input(preset: str) -> None:
    fields, first_order = some_inputs()
    for scale in (1e-4, 1.0):
        logits = make(preset, normalize=True)(fields * scale, first_order)
        assert logits.isfinite().all()
        assert logits.abs().max() < 1e4


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_what_it_is(preset: str) -> None:
    assert inspect.getdoc(PRESETS[preset]).endswith((".", "?"))


@pytest.mark.parametrize("preset", PRESETS)
def test_all_is_computed_where_the_input_is(preset: str) -> None:
    """On the device without memory, which refuses tensors of another."""
    network = make(preset, normalize=True).to("meta")
    fields, first_order = (tensor.to("meta") for tensor in some_inputs(5))
    logits = network(fields, first_order)
    assert (logits.shape, logits.device.type) == ((5,), "meta")


def test_equal_seeds_start_equal_networks() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(make("secn_a1_deep").state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=0)


def test_logits_are_the_bias_the_linear_term_and_what_the_parts_say() -> None:
    network, (fields, first_order) = make("deepfm").eval(), some_inputs()
    nn.init.constant_(network.bias, 0.5)
    parts = network.parts["interactions"](fields) + network.parts["deep"](fields)
    torch.testing.assert_close(network(fields, first_order), first_order + 0.5 + parts)


def test_attention_over_the_fields_is_added_to_any_network() -> None:
    network, (fields, first_order) = make("fm", attention_layers=1, heads=2), some_inputs()
    parts = network.parts["interactions"](fields) + network.parts["attention"](fields)
    torch.testing.assert_close(network(fields, first_order), first_order + parts)


def test_logistic_regression_is_the_linear_term_and_a_bias() -> None:
    network, (fields, first_order) = make("lr"), some_inputs()
    nn.init.constant_(network.bias, -2)
    torch.testing.assert_close(network(fields, first_order), first_order - 2)


def test_the_norm_of_a_slice_is_over_its_fields() -> None:
    fields = torch.tensor([[[3.0, 0.0], [4.0, 1e-4]]])
    root = 12.5**0.5
    expected = torch.tensor([[[3 / root, 0.0], [4 / root, 2**0.5]]])
    # the floor takes 1 % of a slice as small as 1e-4
    torch.testing.assert_close(slice_norm(fields), expected, rtol=0.011, atol=1e-6)
    assert slice_norm(torch.zeros(1, 2, 2)).eq(0).all()


def test_normalized_input_keeps_deep_products_alive() -> None:
    """Without it, a product of four embeddings of 1e-4 is lost beside the linear term."""
    fields = torch.randn(32, FIELDS, WIDTH) * 1e-4
    zeros = torch.zeros(32)
    bare, normed = make("secn_a"), make("secn_a", normalize=True)
    assert bare(fields, zeros).std() < 1e-7
    assert normed(fields, zeros).std() > 1e-2


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # 1 bias each; L=3, F=6, D=8, H=6
        (CrossingConfig(kind="separation"), 8 * 3 * 6**3 + 18 + 1),
        (CrossingConfig(kind="cin"), 3 * 6**3 + 18 + 1),
        (CrossingConfig(kind="separation", rank=2), 8 * 3 * 2 * 2 * 36 + 18 + 1),
        (PRESETS["secn_b"](), 3 * 8 * 6 * 7 + 18 + 1),
        (PRESETS["secn_full"](), 3 * 48 * 49 + 18 + 1),
        (CrossingConfig(kind="cross_v2", layers=2), 2 * 48 * 49 + 48 + 1),
        (CrossingConfig(kind="cross_v2", layers=2, rank=5), 2 * (2 * 48 * 5 + 48) + 48 + 1),
        (CrossingConfig(kind="cross_v1", layers=2), 5 * 48 + 1),
        (CrossingConfig(kind="fvfm"), 15 * 8 + 1),
        (CrossingConfig(kind="fmfm"), 15 * 64 + 1),
        (CrossingConfig(kind="afm", attention_width=4), 4 * 10 + 8 + 1),
        (CrossingConfig(kind="fi_gnn"), 3 * (2 * 6 * 64 + 8) + 6 * 64 + 48 + 16 + 8 + 36 * 8 + 1),
        (CrossingConfig(kind="linear", deep=(7, 5)), 48 * 7 + 7 + 35 + 5 + 5 + 1),
    ],
)
def test_parameters_are_as_many_as_documented(config: CrossingConfig, parameters: int) -> None:
    network = make_crossing(config, FIELDS, WIDTH)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_every_network_is_of_the_common_class() -> None:
    assert all(isinstance(make(preset), CrossingNetwork) for preset in PRESETS)
