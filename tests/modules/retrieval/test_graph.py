"""Graph models against dense algebra: float64, numpy, no graph library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modules.retrieval.config import GCMCConfig, LightGCNConfig, NGCFConfig
from modules.retrieval.loss import Pairs, bpr

pytest.importorskip("torch_geometric", reason="the extra graph is not installed")
from torch_geometric.nn import models

from modules.retrieval import graph

USERS, ITEMS, WIDTH = 3, 5, 4
# user 0 bought 1 2 3, user 1 bought 2, user 2 bought 2 4; nobody bought 0, the unknown item
BOUGHT = [(0, 1), (0, 2), (0, 3), (1, 2), (2, 2), (2, 4)]
BATCH = Pairs(*map(torch.tensor, ([0, 1, 2], [1, 2, 4], [4, 3, 1])))


def dense() -> np.ndarray:
    """The normalised adjacency, as its formula says."""
    bought = np.zeros((USERS, ITEMS))
    for user, item in BOUGHT:
        bought[user, item] = 1
    whole = np.block([[np.zeros((USERS, USERS)), bought], [bought.T, np.zeros((ITEMS, ITEMS))]])
    degree = whole.sum(1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(len(degree)), where=degree > 0)
    return scale[:, None] * whole * scale


def sparse() -> Tensor:
    users, items = torch.tensor(BOUGHT).T
    return graph.adjacency(users, items, USERS, ITEMS)


def make(config: LightGCNConfig | NGCFConfig | GCMCConfig) -> graph.GraphRetriever:
    """The model in float64, so that it can be compared to the last digits."""
    torch.manual_seed(0)
    kinds = {LightGCNConfig: graph.LightGCN, NGCFConfig: graph.NGCF, GCMCConfig: graph.GCMC}
    model = kinds[type(config)](sparse().double(), USERS, config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def vectors(model: graph.GraphRetriever) -> np.ndarray:
    return torch.cat(model.encode(())).numpy()


def test_the_adjacency_is_its_formula_and_symmetric() -> None:
    found = sparse().to_dense().numpy()
    np.testing.assert_allclose(found, dense(), atol=1e-7)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lightgcn_is_the_mean_of_the_powers(layers: int) -> None:
    model = make(LightGCNConfig(width=WIDTH, layers=layers))
    rows = array(model.start())
    powers = [np.linalg.matrix_power(dense(), layer) @ rows for layer in range(layers + 1)]
    # float32 in the graph's weights
    np.testing.assert_allclose(vectors(model), np.mean(powers, axis=0), atol=1e-6)


def test_lightgcn_is_that_of_the_library() -> None:
    model = make(LightGCNConfig(width=WIDTH, layers=3))
    theirs = models.LightGCN(USERS + ITEMS, WIDTH, 3).double()
    theirs.embedding.weight = model.model.embedding.weight
    users, items = torch.tensor(BOUGHT).T
    ends = torch.stack([users, items + USERS])
    expected = theirs.get_embedding(torch.cat([ends, ends.flip(0)], dim=1))
    torch.testing.assert_close(torch.cat(model.encode(())), expected, atol=1e-6, rtol=0)


def test_ngcf_is_its_matrix_form() -> None:
    model = make(NGCFConfig(width=WIDTH, layers=2))
    rows = array(model.rows)
    parts = [rows]
    for layer in model.layers:
        w1, w2 = array(layer.sum.weight).T, array(layer.product.weight).T
        sent = (dense() + np.eye(USERS + ITEMS)) @ rows @ w1 + (dense() @ rows * rows) @ w2
        rows = np.where(sent > 0, sent, 0.2 * sent)
        parts.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert vectors(model).shape == (USERS + ITEMS, 3 * WIDTH)
    np.testing.assert_allclose(vectors(model), np.concatenate(parts, axis=1), atol=1e-5)


def test_gcmc_scores_by_its_bilinear_decoder() -> None:
    model = make(GCMCConfig(width=WIDTH))
    nodes = np.maximum(dense() @ array(model.rows), 0) @ array(model.dense.weight).T
    users, items = nodes[:USERS], nodes[USERS:]
    expected = users @ array(model.decoder.weight) @ items.T
    found = model.encode(())
    np.testing.assert_allclose((found.users @ found.items.T).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [LightGCNConfig(width=WIDTH, layers=2), NGCFConfig(width=WIDTH), GCMCConfig(width=WIDTH)],
    ids=lambda config: type(config).__name__,
)
def test_gradients_are_the_slopes_of_the_loss(config: NGCFConfig) -> None:
    """Those of BPR agree with differences of it."""
    model = make(config)
    names, start = zip(*model.named_parameters(), strict=True)

    def loss(*parameters: Tensor) -> Tensor:
        return bpr(torch.func.functional_call(model, dict(zip(names, parameters, strict=True)),
                                              (BATCH,)))  # fmt: skip

    assert torch.autograd.gradcheck(loss, start, eps=1e-6, atol=1e-6)


def test_a_batch_picks_the_vectors_of_its_users_and_items() -> None:
    model = make(LightGCNConfig(width=WIDTH, layers=2))
    compared, found = model(BATCH), model.encode(())
    torch.testing.assert_close(compared.queries, found.users[BATCH.users])
    torch.testing.assert_close(compared.positives, found.items[BATCH.positives])
    torch.testing.assert_close(compared.negatives, found.items[BATCH.negatives])
    # what l2 weighs is what was sent
    torch.testing.assert_close(compared.rows[1], model.start()[USERS + BATCH.positives])


def test_gcmc_dropout_silences_whole_nodes_in_training_alone() -> None:
    model = make(GCMCConfig(width=WIDTH, dropout=0.5))
    quiet = vectors(model)
    np.testing.assert_array_equal(vectors(model), quiet)
    sent: list[Tensor] = []
    model.spread.register_forward_pre_hook(lambda _, args: sent.append(args[0]))
    model.train()
    model.propagate()
    ratio = sent[0] / model.rows
    assert set(ratio.flatten().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_ngcf_dropout_is_of_training_alone() -> None:
    model = make(NGCFConfig(width=WIDTH, dropout=0.5))
    quiet = vectors(model)
    np.testing.assert_array_equal(vectors(model), quiet)
    model.train()
    assert not np.array_equal(vectors(model), quiet)


def test_the_graph_is_no_weight_of_the_model() -> None:
    model: nn.Module = make(LightGCNConfig(width=WIDTH, layers=1))
    assert [name for name, _ in model.named_parameters()] == ["model.embedding.weight"]
    assert "graph" not in model.state_dict()
