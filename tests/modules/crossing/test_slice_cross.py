"""Cross layers with a backward of their own are what autograd makes of their equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modules.crossing import slice_cross as room
from modules.crossing.separation import Separation
from modules.crossing.slice_cross import CrossLayers

SLICES, ROWS, COORDINATES, LAYERS = 3, 5, 4, 3
SETTINGS = {
    "as in DCN-V2": {"residual": True, "bias": True},
    "no bias": {"residual": True, "bias": False},
    "no residual": {"residual": False, "bias": True},
    "bare": {"residual": False, "bias": False},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def make(coordinates: int = COORDINATES, **settings: bool) -> CrossLayers:
    layers = CrossLayers(LAYERS, SLICES, coordinates, **settings).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layers


def some_slices(coordinates: int = COORDINATES) -> Tensor:
    return torch.randn(SLICES, ROWS, coordinates, dtype=torch.float64, requires_grad=True)


def by_autograd(layers: CrossLayers, x0: Tensor) -> list[Tensor]:
    x, maps = x0, []
    for layer in layers:
        mixed = torch.einsum("nij,nrj->nri", layer.weight, x)
        mixed = mixed if layer.bias is None else mixed + layer.bias
        x = x0 * mixed + (x if layers.residual else 0)
        maps.append(x)
    return maps


@every_setting
@pytest.mark.parametrize("coordinates", [1, 3, 4, 7])
@pytest.mark.parametrize("cache_floats", [1, 2 * ROWS * 8, 1_000_000])
def test_maps_and_gradients_are_those_of_the_equation(
    settings: dict, coordinates: int, cache_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one slice at a time, with two and then the last, and with all."""
    monkeypatch.setattr(room, "CACHE_FLOATS", cache_floats)
    layers, slices = make(coordinates, **settings), some_slices(coordinates)
    inputs = [slices, *layers.parameters()]
    maps, expected = layers(slices), by_autograd(layers, slices)
    torch.testing.assert_close(maps, expected)
    gradients = torch.randn(LAYERS, SLICES, ROWS, coordinates, dtype=torch.float64).unbind()
    torch.testing.assert_close(
        torch.autograd.grad(maps, inputs, gradients),
        torch.autograd.grad(expected, inputs, gradients),
    )


@every_setting
@pytest.mark.parametrize("summed", [False, True])
def test_gradients_are_difference_quotients(settings: dict, summed: bool) -> None:
    layers, slices = make(**settings), some_slices()

    def maps(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(layers(slices, summed=summed))

    assert torch.autograd.gradcheck(maps, (slices, *layers.parameters()))


@every_setting
def test_sums_are_over_slices(settings: dict) -> None:
    layers, slices = make(**settings), some_slices()
    expected = [maps.sum(0) for maps in layers(slices)]
    torch.testing.assert_close(layers(slices, summed=True), expected)


def test_one_map_alone_can_be_backpropagated() -> None:
    layers, slices = make(residual=True, bias=True), some_slices()
    (gradient,) = torch.autograd.grad(layers(slices)[1].sum(), slices)
    (expected,) = torch.autograd.grad(by_autograd(layers, slices)[1].sum(), slices)
    torch.testing.assert_close(gradient, expected)


def test_backward_keeps_the_input_and_the_mixed_maps_alone() -> None:
    layers, slices = make(residual=True, bias=True), some_slices()
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layers(slices)
    padded = (SLICES, ROWS, 8)  # four coordinates, the one, three zeros
    assert kept.count(padded) == 1 + LAYERS
    assert sum(shape[:2] == padded[:2] for shape in kept) == 1 + LAYERS


def test_a_second_derivative_is_refused() -> None:
    fields = torch.randn(5, 3, 4, requires_grad=True)
    logits = Separation(3, 4, 2, form="cross")(fields)
    (gradient,) = torch.autograd.grad(logits.sum(), fields, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_rows_of_lower_precision_are_crossed_in_that_of_the_weights() -> None:
    part = Separation(3, 4, 2, form="cross", residual=True, layer_bias=True)
    rows = torch.randn(5, 3, 4).bfloat16().requires_grad_()
    maps = part.maps(rows)
    torch.testing.assert_close(maps, part.maps(rows.float()))
    maps[-1].sum().backward()
    assert rows.grad.dtype == torch.bfloat16
