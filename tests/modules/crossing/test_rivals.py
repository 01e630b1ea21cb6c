"""Every network against the same in loops, in float64: logits and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from modules.crossing.attention import FieldAttention
from modules.crossing.cross import CrossNetV1, CrossNetV2
from modules.crossing.deep import Deep, FinalMLP, Perceptron
from modules.crossing.fibinet import FiBiNET
from modules.crossing.graph import FiGNN, GraphFM
from modules.crossing.pairs import AFM, FM, NFM, FmFM, FvFM, FwFM
from tests.modules.crossing import naive

FIELDS, WIDTH = 4, 3


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def some_fields(candidates: int = 3) -> Tensor:
    return torch.randn(candidates, FIELDS, WIDTH)


def shaken(part: nn.Module) -> nn.Module:
    """Weights that start equal or at zero would hide errors."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return part


NETWORKS: dict[str, tuple[Callable[[], nn.Module], naive.Naive]] = {
    "FwFM": (lambda: FwFM(FIELDS), naive.fwfm),
    "FvFM": (lambda: FvFM(FIELDS, WIDTH), naive.fvfm),
    "FmFM": (lambda: FmFM(FIELDS, WIDTH), naive.fmfm),
    "NFM": (lambda: NFM(WIDTH, (5, 4)), naive.nfm),
    "NFM without layers": (lambda: NFM(WIDTH, ()), naive.nfm),
    "AFM": (lambda: AFM(WIDTH, 5), naive.afm),
    "deep": (lambda: Deep(FIELDS, WIDTH, (5, 4)), naive.deep),
    "cross v1": (lambda: CrossNetV1(FIELDS, WIDTH, 3), naive.cross_v1),
    "cross v2": (lambda: CrossNetV2(FIELDS, WIDTH, 3), naive.cross_v2),
    "cross v2 of rank 5": (lambda: CrossNetV2(FIELDS, WIDTH, 2, rank=5), naive.cross_v2),
    "AutoInt": (lambda: FieldAttention(FIELDS, WIDTH, 2, 6, 2), naive.attention),
    "AutoInt, no scale": (
        lambda: FieldAttention(FIELDS, WIDTH, 1, 3, 1, scale=False),
        naive.attention,
    ),
    "AutoInt, no residual": (
        lambda: FieldAttention(FIELDS, WIDTH, 2, 4, 2, residual=False),
        naive.attention,
    ),
    "AutoInt, layer norm": (
        lambda: FieldAttention(FIELDS, WIDTH, 2, 6, 3, layer_norm=True),
        naive.attention,
    ),
    "FiBiNET, all": (
        lambda: FiBiNET(FIELDS, WIDTH, (5,), bilinear="all", reduction=2),
        naive.fibinet,
    ),
    "FiBiNET, each": (
        lambda: FiBiNET(FIELDS, WIDTH, (5,), bilinear="each", reduction=2),
        naive.fibinet,
    ),
    "FiBiNET, interaction": (lambda: FiBiNET(FIELDS, WIDTH, (5,), reduction=2), naive.fibinet),
    "FinalMLP": (lambda: FinalMLP(FIELDS, WIDTH, ((5, 4), (6,)), heads=2), naive.final_mlp),
    "FinalMLP, gates": (
        lambda: FinalMLP(
            FIELDS, WIDTH, ((4,), (6,)), gate_hidden=(5,), gate_fields=((0, 2), ()), heads=2
        ),
        naive.final_mlp,
    ),
    "Fi-GNN": (lambda: FiGNN(FIELDS, WIDTH, 2), naive.fi_gnn),
    "GraphFM": (lambda: GraphFM(WIDTH, 2, 4, 2), naive.graph_fm),
    "GraphFM, best edges": (
        lambda: GraphFM(WIDTH, 2, 4, 2, neighbours=(3, 2)),
        naive.graph_fm,
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_its_equation(network: str) -> None:
    make, loops = NETWORKS[network]
    naive.assert_same(shaken(make()), loops, some_fields(5))


def test_fm_is_its_equation() -> None:
    naive.assert_same(FM(), naive.fm, some_fields())


@pytest.mark.parametrize("network", ["FwFM", "FvFM", "FmFM"])
def test_weighted_machines_start_as_fm(network: str) -> None:
    fields = some_fields()
    torch.testing.assert_close(NETWORKS[network][0]()(fields), FM()(fields))


def test_batch_norm_stands_before_relu_and_dropout_after() -> None:
    layers = Perceptron(2, (3, 4), dropout=0.5, batch_norm=True)
    kinds = [type(layer) for layer in layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 2
    # the mean that batch norm takes away would take a bias with it
    assert layers[0].bias is None
    assert Perceptron(2, (3, 4))[0].bias is not None


def test_a_deep_part_in_training_takes_the_statistics_of_the_batch() -> None:
    part = Deep(FIELDS, WIDTH, (5,), batch_norm=True)
    fields = some_fields(7)
    hidden = fields.flatten(1) @ part.perceptron[0].weight.T
    normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    expected = normed.clamp(min=0) @ part.head.weight[0]
    torch.testing.assert_close(part(fields), expected)


def test_graph_fm_sees_only_the_best_edges() -> None:
    part = GraphFM(WIDTH, 1, 4, 2, neighbours=(1,))
    nodes = some_fields(1)
    edges = nodes.unsqueeze(2) * nodes.unsqueeze(1)
    best = part.layers[0].selection(edges)[0, :, :, 0].argmax(1)
    jacobian = torch.autograd.functional.jacobian(part.layers[0], nodes)[0, :, :, 0]
    reached = jacobian.abs().amax(dim=(1, 3)) > 0
    kept = torch.eye(FIELDS, dtype=torch.bool)
    kept[torch.arange(FIELDS), best] = True
    assert not (reached & ~kept).any()
    assert reached.any()


def test_fi_gnns_edges_go_to_others_and_sum_to_one() -> None:
    graph = FiGNN(FIELDS, WIDTH, 1)._graph(some_fields())
    torch.testing.assert_close(graph.sum(2), torch.ones(3, FIELDS))
    assert graph.diagonal(dim1=1, dim2=2).eq(0).all()
