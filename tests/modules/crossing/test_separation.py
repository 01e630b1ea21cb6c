"""What separation is, and how its forms meet CIN, FM, FvFM and DCN-V2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from modules.crossing import separation as room
from modules.crossing.cross import CrossNetV2
from modules.crossing.pairs import FM, FvFM
from modules.crossing.separation import Separation, bilinear
from tests.modules.crossing import naive

FIELDS, WIDTH = 3, 4


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def some_fields(candidates: int = 5) -> Tensor:
    return torch.randn(candidates, FIELDS, WIDTH)


def make(layers: int = 2, **settings: object) -> Separation:
    part = Separation(FIELDS, WIDTH, layers, **settings)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return part


def copy_(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


FORMS = {
    "A": {"maps": 2},
    "A, more maps than fields": {"maps": 4},
    "A1": {"maps": 2, "rank": 1},
    "A, rank 3": {"maps": 5, "rank": 3},
    "A, residual and bias": {"residual": True, "layer_bias": True},
    "A1, residual and bias": {"rank": 1, "residual": True, "layer_bias": True},
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_filters_are_their_equation(settings: dict, shared: bool) -> None:
    naive.assert_same(make(2, shared=shared, **settings), naive.separation, some_fields(2), 1e-9)


@pytest.mark.parametrize("pool", ["width", "maps"])
@pytest.mark.parametrize("pool_layers", ["concat", "sum"])
def test_pooling_is_over_dimensions_or_maps_side_by_side_or_summed(
    pool: room.Pool, pool_layers: room.PoolLayers
) -> None:
    part = make(2, maps=2, pool=pool, pool_layers=pool_layers)
    naive.assert_same(part, naive.separation, some_fields(2), 1e-9)


def test_equal_filters_are_the_compressed_interaction_network() -> None:
    separate, shared = make(maps=2), make(maps=2, shared=True)
    for of_each, of_all in zip(separate.layers, shared.layers, strict=True):
        copy_(of_each.weight, of_all.weight.expand_as(of_each.weight))
    copy_(separate.head.weight, shared.head.weight)
    fields = some_fields()
    torch.testing.assert_close(separate(fields), shared(fields))


def test_the_compressed_interaction_network_is_a_convolution_over_outer_products() -> None:
    """xDeepFM's own words: every dimension's outer product goes through the same 1x1 filters."""
    part, x0 = make(maps=2, shared=True), some_fields()
    x, pooled = x0, []
    for layer in part.layers:
        products = torch.einsum("bhd,bmd->bhmd", x, x0).flatten(1, 2)
        kernel = layer.weight[0].permute(2, 1, 0).flatten(1).unsqueeze(2)
        x = torch.nn.functional.conv1d(products, kernel)
        pooled.append(x.sum(2))
    torch.testing.assert_close(part(x0), torch.cat(pooled, 1) @ part.head.weight[0])


def test_rank_one_is_the_full_filter_of_an_outer_product() -> None:
    thin, full = make(maps=2, rank=1), make(maps=2)
    for low, high in zip(thin.layers, full.layers, strict=True):
        copy_(high.weight, torch.einsum("nih,njh->njih", low.u[..., 0], low.v[..., 0]))
    copy_(full.head.weight, thin.head.weight)
    fields = some_fields()
    torch.testing.assert_close(thin(fields), full(fields))


def test_a_rank_of_all_fields_recovers_the_full_filter() -> None:
    """U = W and V = identity: what of W is taken apart is up to the rank."""
    full, factored = make(), make(rank=FIELDS)
    for high, low in zip(full.layers, factored.layers, strict=True):
        copy_(low.u, high.weight.permute(0, 2, 3, 1))
        copy_(low.v, torch.eye(FIELDS)[None, :, None].expand_as(low.v))
    copy_(factored.head.weight, full.head.weight)
    fields = some_fields()
    torch.testing.assert_close(factored(fields), full(fields))


def test_one_layer_and_map_is_fvfm_and_squares() -> None:
    part, fvfm, fields = make(1, maps=1), FvFM(FIELDS, WIDTH), some_fields()
    weight = part.layers[0].weight[..., 0] * part.head.weight[0, 0]  # (D, F, F)
    first, second = torch.triu_indices(FIELDS, FIELDS, 1)
    copy_(fvfm.weight, (weight + weight.mT)[:, first, second].T)
    squares = torch.einsum("dii,sid->s", weight, fields.square())
    torch.testing.assert_close(part(fields), fvfm(fields) + squares)


def test_ones_above_the_diagonal_are_fm() -> None:
    part, fields = make(1, maps=1), some_fields()
    copy_(part.layers[0].weight, torch.ones(FIELDS, FIELDS).triu(1)[None, :, :, None])
    copy_(part.head.weight, torch.ones(1, 1))
    torch.testing.assert_close(part(fields), FM()(fields))


def block_position(group: int) -> Tensor:
    """(F D,) coordinate of (field, dimension) in a matrix whose blocks are groups of dimensions."""
    dimension = torch.arange(WIDTH).repeat(FIELDS)
    field = torch.arange(FIELDS).repeat_interleave(WIDTH)
    return dimension // group * group * FIELDS + dimension % group * FIELDS + field


@pytest.mark.parametrize("group", [1, 2, 4])
def test_cross_is_dcn_v2_with_a_block_diagonal_matrix(group: int) -> None:
    part = make(2, form="cross", group=group, residual=True, layer_bias=True)
    dcn, fields, order = CrossNetV2(FIELDS, WIDTH, 2), some_fields(), block_position(group)
    for layer, full in zip(part.layers, dcn.layers, strict=True):
        copy_(full.weight, torch.block_diag(*layer.weight)[order][:, order])
        copy_(full.bias, layer.bias.flatten()[order])
    x = x0 = fields.flatten(1)
    pooled = []
    for full in dcn.layers:
        x = x0 * full(x) + x
        pooled.append(x.view_as(fields).sum(2))
    # groups pool the sum over their dimensions too
    torch.testing.assert_close(part(fields), torch.cat(pooled, 1) @ part.head.weight[0])
    maps = part.maps(fields)[-1].permute(1, 0, 2).flatten(1)[:, order]
    torch.testing.assert_close(maps @ dcn.head.weight[0], dcn(fields))


@pytest.mark.parametrize("group", [1, 2, 4])
def test_pooling_over_maps_keeps_the_order_of_dimensions(group: int) -> None:
    part, fields = make(1, form="cross", group=group, pool="maps"), some_fields()
    maps = part.maps(fields)[0].permute(1, 0, 2).flatten(1)[:, block_position(group)]
    torch.testing.assert_close(part(fields), maps.view_as(fields).sum(1) @ part.head.weight[0])


def test_cross_with_one_matrix_is_the_separate_one_with_equal_matrices() -> None:
    settings = {"form": "cross", "residual": True, "layer_bias": True}
    separate, shared, fields = make(**settings), make(shared=True, **settings), some_fields()
    for of_each, of_all in zip(separate.layers, shared.layers, strict=True):
        copy_(of_each.weight, of_all.weight.expand_as(of_each.weight))
        copy_(of_each.bias, of_all.bias.expand_as(of_each.bias))
    copy_(separate.head.weight, shared.head.weight)
    torch.testing.assert_close(separate(fields), shared(fields))


def test_cross_without_residual_and_bias_is_the_bare_product() -> None:
    part, fields = make(1, form="cross"), some_fields()
    mixed = torch.einsum("dij,sjd->sid", part.layers[0].weight, fields)
    expected = (fields * mixed).sum(2) @ part.head.weight[0]
    torch.testing.assert_close(part(fields), expected)


ALL_FORMS = {
    **FORMS,
    "B": {"form": "cross"},
    "B, residual and bias": {"form": "cross", "residual": True, "layer_bias": True},
    "B, groups of 2": {"form": "cross", "group": 2, "residual": True, "layer_bias": True},
}


@pytest.mark.parametrize("settings", ALL_FORMS.values(), ids=ALL_FORMS)
def test_a_slice_depends_on_its_own_dimensions_alone(settings: dict) -> None:
    part, group = make(**settings), settings.get("group", 1)
    fields = some_fields(1)

    def last_maps(x: Tensor) -> Tensor:
        return part.maps(x)[-1][:, 0]  # (N, g H)

    jacobian = torch.autograd.functional.jacobian(last_maps, fields)[:, :, 0]  # (N, g H, F, D)
    reached = jacobian.abs().amax(dim=(1, 2)) > 0
    slices = WIDTH // group
    own = torch.arange(WIDTH) // group == torch.arange(slices)[:, None]
    assert torch.equal(reached, own)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("settings", ALL_FORMS.values(), ids=ALL_FORMS)
def test_the_degree_is_one_more_than_the_layers(settings: dict, layers: int) -> None:
    """Differences of order n of a polynomial of degree n are n! times its first coefficient; the
    next are zero.
    """
    part = make(layers, **settings)
    steps = torch.arange(layers + 3, dtype=torch.float64) - 1
    along = part(some_fields(1) * steps[:, None, None])
    assert along.diff(n=layers + 1).abs().min() > 1e-6
    torch.testing.assert_close(along.diff(n=layers + 2), torch.zeros(1), atol=1e-8, rtol=0)


@pytest.mark.parametrize("settings", ALL_FORMS.values(), ids=ALL_FORMS)
def test_dimensions_have_no_order(settings: dict) -> None:
    """Permuting slices together with their weights leaves logits as they are."""
    part, fields = make(**settings), some_fields()
    before = part(fields)
    group = settings.get("group", 1)
    order = torch.randperm(WIDTH // group)
    for layer in part.layers:
        for parameter in layer.parameters():
            copy_(parameter, parameter[order].clone())
    permuted = fields.unflatten(2, (-1, group))[:, :, order].flatten(2)
    torch.testing.assert_close(part(permuted), before)


def test_tiles_change_neither_results_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    x, x0 = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    weight = torch.randn(2, 4, 3, 5)
    inputs = [tensor.requires_grad_() for tensor in (x, x0, weight)]
    whole = bilinear(*inputs)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr(room, "TILE_FLOATS", 3 * 2 * 3 * 5)  # three rows, three rows, one
    tiled = bilinear(*inputs)
    torch.testing.assert_close(tiled, whole)
    torch.testing.assert_close(torch.autograd.grad(tiled.square().sum(), inputs), expected)


def test_backward_of_tiles_keeps_no_half_contracted_filter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "TILE_FLOATS", 2 * 3 * 5)  # two rows
    x, x0 = torch.randn(1, 6, 3, requires_grad=True), torch.randn(1, 6, 4)
    weight = torch.randn(1, 4, 3, 5, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bilinear(x, x0, weight)
    assert 2 * 3 * 5 not in kept
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bilinear(x[:, :2], x0[:, :2], weight)  # a single tile is kept
    assert 2 * 3 * 5 in kept


@pytest.mark.parametrize("rank", [1, 4])
def test_factors_start_with_the_variance_of_the_full_filter(rank: int) -> None:
    full = Separation(20, 8, 1, maps=20).layers[0].weight
    low = Separation(20, 8, 1, maps=20, rank=rank).layers[0]
    product = torch.einsum("nihr,njhr->njih", low.u, low.v)
    assert product.std().item() == pytest.approx(full.std().item(), rel=0.05)
