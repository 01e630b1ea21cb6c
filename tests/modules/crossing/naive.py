"""The networks again, one candidate at a time, in loops over fields, pairs and dimensions.

``v`` is (F, D), a candidate's fields; every function returns its logit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from modules.crossing.attention import FieldAttention
from modules.crossing.cross import CrossNetV1, CrossNetV2
from modules.crossing.deep import Deep, FieldGate, FinalMLP, Perceptron
from modules.crossing.fibinet import BilinearProducts, FiBiNET
from modules.crossing.graph import FiGNN, GraphFM
from modules.crossing.pairs import AFM, FM, NFM, FmFM, FvFM, FwFM
from modules.crossing.separation import Separation

Naive = Callable[[nn.Module, Tensor], Tensor]


def assert_same(part: nn.Module, naive: Naive, fields: Tensor, tolerance: float = 1e-10) -> None:
    """Logits, and the gradients of the input and of every parameter, are those of the loops."""
    fields = fields.clone().requires_grad_()
    sources = [fields, *part.parameters()]
    found = part(fields)
    expected = torch.stack([naive(part, v) for v in fields])
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found, expected, **close)
    mixed = torch.linspace(1, 2, len(fields), dtype=fields.dtype)
    gradients = torch.autograd.grad((found * mixed).sum(), sources)
    others = torch.autograd.grad((expected * mixed).sum(), sources)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, **close)
        assert other.abs().max() > 0


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum((x * y for x, y in zip(a, b, strict=True)), torch.zeros((), dtype=a.dtype))


def apply(linear: nn.Linear, x: Tensor) -> Tensor:
    out = torch.stack([dot(row, x) for row in linear.weight])
    return out if linear.bias is None else out + linear.bias


def perceptron(layers: Perceptron, x: Tensor) -> Tensor:
    for layer in layers:
        x = apply(layer, x) if isinstance(layer, nn.Linear) else x.clamp(min=0)
    return x


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def leaky(x: Tensor) -> Tensor:
    return x if x > 0 else 0.01 * x


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def pairs(v: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    for number, (i, j) in enumerate(itertools.combinations(range(len(v)), 2)):
        yield number, v[i], v[j]


def fm(_: FM, v: Tensor) -> Tensor:
    return sum(dot(a, b) for _, a, b in pairs(v))


def fwfm(part: FwFM, v: Tensor) -> Tensor:
    return sum(part.weight[p] * dot(a, b) for p, a, b in pairs(v))


def fvfm(part: FvFM, v: Tensor) -> Tensor:
    return sum(dot(part.weight[p] * a, b) for p, a, b in pairs(v))


def fmfm(part: FmFM, v: Tensor) -> Tensor:
    return sum(
        a[d] * part.weight[p, d, e] * b[e]
        for p, a, b in pairs(v)
        for d, e in itertools.product(range(v.shape[1]), repeat=2)
    )


def nfm(part: NFM, v: Tensor) -> Tensor:
    crossed = sum(a * b for _, a, b in pairs(v))
    return dot(part.head.weight[0], perceptron(part.perceptron, crossed))


def afm(part: AFM, v: Tensor) -> Tensor:
    products = [a * b for _, a, b in pairs(v)]
    scores = [dot(part.score.weight[0], apply(part.attention, e).clamp(min=0)) for e in products]
    weights = softmax(scores)
    pooled = sum(w * e for w, e in zip(weights, products, strict=True))
    return dot(part.head.weight[0], pooled)


def deep(part: Deep, v: Tensor) -> Tensor:
    flat = torch.cat(list(v))
    return dot(part.head.weight[0], perceptron(part.perceptron, flat))


def cross_v1(part: CrossNetV1, v: Tensor) -> Tensor:
    """The rank-one matrix x_0 x_l^T written out."""
    x = x0 = torch.cat(list(v))
    for weight, bias in zip(part.weight, part.bias, strict=True):
        x = torch.outer(x0, x) @ weight[:, 0] + bias + x
    return dot(part.head.weight[0], x)


def cross_v2(part: CrossNetV2, v: Tensor) -> Tensor:
    x = x0 = torch.cat(list(v))
    for layer in part.layers:
        if isinstance(layer, nn.Linear):
            matrix, bias = layer.weight, layer.bias
        else:
            matrix, bias = layer[1].weight @ layer[0].weight, layer[1].bias
        x = torch.stack([x0[k] * (dot(matrix[k], x) + bias[k]) + x[k] for k in range(len(x))])
    return dot(part.head.weight[0], x)


def separation(part: Separation, v: Tensor) -> Tensor:
    """Filters, shared or of each dimension's own, of full or of low rank; no group."""
    fields, width = v.shape
    x = v
    pooled = []
    for layer in part.layers:
        rows = []
        maps = layer.weight.shape[3] if hasattr(layer, "weight") else layer.u.shape[2]
        for h in range(maps):
            row = []
            for d in range(width):
                n = 0 if part.shared else d
                total = torch.zeros((), dtype=v.dtype)
                for i, j in itertools.product(range(len(x)), range(fields)):
                    total = total + filter_weight(layer, n, h, i, j) * x[i, d] * v[j, d]
                if layer.bias is not None:
                    total = total + layer.bias[n, 0, h]
                row.append(total + x[h, d] if layer.residual else total)
            rows.append(torch.stack(row))
        x = torch.stack(rows)
        pooled.append(x.sum(1) if part.pool == "width" else x.sum(0))
    together = torch.cat(pooled) if part.pool_layers == "concat" else sum(pooled)
    return dot(part.head.weight[0], together)


def filter_weight(layer: nn.Module, n: int, h: int, i: int, j: int) -> Tensor:
    if hasattr(layer, "weight"):
        return layer.weight[n, j, i, h]
    return dot(layer.u[n, i, h], layer.v[n, j, h])


def attention(part: FieldAttention, v: Tensor) -> Tensor:
    x = v
    for layer in part.layers:
        q, k, value = (
            torch.stack([matrix @ row for row in x])
            for matrix in layer.in_projection.weight.chunk(3)
        )
        width = q.shape[1] // layer.heads
        divisor = math.sqrt(width) if layer.scale is None else 1
        rows = []
        for i in range(len(x)):
            heads = []
            for h in range(layer.heads):
                c = slice(h * width, (h + 1) * width)
                weights = softmax([dot(q[i, c], k[j, c]) / divisor for j in range(len(x))])
                heads.append(sum(w * value[j, c] for j, w in enumerate(weights)))
            row = torch.cat(heads)
            if layer.residual:
                kept = isinstance(layer.shortcut, nn.Identity)
                row = row + (x[i] if kept else apply(layer.shortcut, x[i]))
            if isinstance(layer.norm, nn.LayerNorm):
                row = layer_norm(layer.norm, row)
            rows.append(row.clamp(min=0))
        x = torch.stack(rows)
    return dot(part.head.weight[0], torch.cat(list(x)))


def fibinet(part: FiBiNET, v: Tensor) -> Tensor:
    squeeze = torch.stack([row.sum() / len(row) for row in v])
    middle = apply(part.excitation[0], squeeze).clamp(min=0)
    weights = apply(part.excitation[2], middle).clamp(min=0)
    weighted = torch.stack([w * row for w, row in zip(weights, v, strict=True)])
    products = bilinear(part.products, v) + bilinear(part.weighted_products, weighted)
    return dot(part.head.weight[0], perceptron(part.perceptron, torch.cat(products)))


def bilinear(part: BilinearProducts, v: Tensor) -> list[Tensor]:
    products = []
    for number, (i, j) in enumerate(itertools.combinations(range(len(v)), 2)):
        matrix = part.weight[{"all": 0, "each": i, "interaction": number}[part.kind]]
        products.append(torch.stack([dot(row, v[i]) for row in matrix]) * v[j])
    return products


def final_mlp(part: FinalMLP, v: Tensor) -> Tensor:
    flat = torch.cat(list(v))
    inputs = [gated(gate, v) for gate in part.gates] or [flat, flat]
    x, y = (perceptron(s, of_s) for s, of_s in zip(part.streams, inputs, strict=True))
    logit = dot(part.first.weight[0], x) + dot(part.second.weight[0], y)
    heads, a, b = part.fusion.shape
    for h, i, j in itertools.product(range(heads), range(a), range(b)):
        logit = logit + part.fusion[h, i, j] * x[h * a + i] * y[h * b + j]
    return logit


def gated(gate: FieldGate, v: Tensor) -> Tensor:
    context = torch.cat([v[i] for i in gate.read]) if gate.read else gate.context[0]
    opening = apply(gate.last, perceptron(gate.perceptron, context))
    return torch.cat(list(v)) * 2 / (1 + (-opening).exp())


def fi_gnn(part: FiGNN, v: Tensor) -> Tensor:
    graph = []
    for i in range(len(v)):
        others = [j for j in range(len(v)) if j != i]
        scores = [leaky(dot(part.edge.weight[0], torch.cat([v[i], v[j]]))) for j in others]
        graph.append(list(zip(others, softmax(scores), strict=True)))
    h = v
    for layer in range(len(part.map_out)):
        rows = []
        for i in range(len(v)):
            sent = sum(g * (part.map_out[layer, j] @ h[j]) for j, g in graph[i])
            received = part.map_in[layer, i] @ sent + part.bias[layer]
            rows.append(gru(part.update, received, h[i]) + v[i])
        h = torch.stack(rows)
    weights = apply(part.weight, torch.cat(list(h))).sigmoid()
    return sum(w * dot(part.score.weight[0], row) for w, row in zip(weights, h, strict=True))


def gru(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    reset_x, update_x, new_x = (cell.weight_ih @ x + cell.bias_ih).chunk(3)
    reset_h, update_h, new_h = (cell.weight_hh @ h + cell.bias_hh).chunk(3)
    reset, update = (reset_x + reset_h).sigmoid(), (update_x + update_h).sigmoid()
    new = (new_x + reset * new_h).tanh()
    return (1 - update) * new + update * h


def graph_fm(part: GraphFM, v: Tensor) -> Tensor:
    nodes, pooled = v, []
    for layer in part.layers:
        nodes = torch.stack([graph_fm_node(layer, nodes, i) for i in range(len(v))])
        pooled.append(nodes.sum(0) / len(v))
    return dot(part.head.weight[0], torch.cat(pooled))


def graph_fm_node(layer: nn.Module, nodes: Tensor, i: int) -> Tensor:
    edges = [nodes[i] * other for other in nodes]
    hidden = [apply(layer.selection[0], e).clamp(min=0) for e in edges]
    chances = [apply(layer.selection[2], h)[0].sigmoid() for h in hidden]
    count = layer.neighbours or len(nodes)
    kept = sorted(range(len(nodes)), key=lambda j: -chances[j].item())[:count]
    width = layer.value.weight.shape[0] // layer.heads
    heads = []
    for h in range(layer.heads):
        weights = softmax([leaky(dot(layer.attention.weight[h], edges[j])) for j in kept])
        matrix = layer.value.weight[h * width : (h + 1) * width]
        summed = zip(weights, kept, strict=True)
        heads.append(sum(w * chances[j] * (matrix @ edges[j]) for w, j in summed))
    received = torch.cat(heads) + apply(layer.shortcut, nodes[i])
    return layer_norm(layer.norm, received.clamp(min=0))
