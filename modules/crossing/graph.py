"""Fields as the nodes of a graph: Fi-GNN and GraphFM.

Shapes: S candidates, F fields (nodes), D width; A node width in E heads of A / E.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.attention import masked_softmax
from modules.crossing.parameters import xavier

SELECTION_WIDTH = 16
"""Hidden width of GraphFM's edge selection, as in the authors' code."""


class FiGNN(nn.Module):
    r"""Feature interaction graph network (https://arxiv.org/abs/1910.05552).

    .. math::
        g_{ij} &= \mathrm{softmax}_{j \ne i}(\mathrm{LeakyReLU}(w \cdot [v_i; v_j])) \\
        h_i &\leftarrow v_i +
            \mathrm{GRU}(W^{in}_i \textstyle\sum_j g_{ij} W^{out}_j h_j + b,\; h_i) \\
        \mathrm{logit} &= \textstyle\sum_i σ(u_i \cdot [h_1; ...; h_F])\, (w_p \cdot h_i)

    As in the public benchmarks, without the paper's attention layer before the graph. Parameters:
    2 L F D² + 6 D² (the GRU, the same for all layers) + F² D. FLOPs per candidate and layer:
    2 (8 F D² + F² D).
    """

    def __init__(self, fields: int, width: int, layers: int) -> None:
        super().__init__()
        self.edge = nn.Linear(2 * width, 1, bias=False)
        shape = (layers, fields, width, width)
        self.map_out = xavier(*shape, fan_in=width, fan_out=width)
        self.map_in = xavier(*shape, fan_in=width, fan_out=width)
        self.bias = nn.Parameter(torch.zeros(layers, width))
        self.update = nn.GRUCell(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.weight = nn.Linear(fields * width, fields, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        graph_SFF, nodes = self._graph(fields), fields
        for map_out, map_in, bias in zip(self.map_out, self.map_in, self.bias, strict=True):
            sent = torch.einsum("sfd,fed->sfe", nodes, map_out)
            received = torch.einsum("sfd,fed->sfe", graph_SFF @ sent, map_in) + bias
            updated = self.update(received.flatten(0, 1), nodes.flatten(0, 1))
            nodes = updated.view_as(fields) + fields
        weight_SF = self.weight(nodes.flatten(1)).sigmoid()
        return (weight_SF * self.score(nodes).squeeze(2)).sum(1)

    def _graph(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S, F, F) weights of the edges into each node, none from itself."""
        into, out_of = self.edge.weight.view(2, -1)
        scores = (fields @ into).unsqueeze(2) + (fields @ out_of).unsqueeze(1)
        itself = torch.eye(fields.shape[1], dtype=torch.bool, device=fields.device)
        return masked_softmax(F.leaky_relu(scores), ~itself)


class GraphFM(nn.Module):
    r"""Graph factorization machine (https://arxiv.org/abs/2105.11866).

    Each layer keeps the best edges of each node and sums the products with its neighbours:

    .. math::
        e_{ij} &= n_i ∘ n_j, \quad p_{ij} = σ(\mathrm{MLP}(e_{ij})),
            \quad N_i = \mathrm{top}_m\, p_{i:} \\
        α_{ij} &= \mathrm{softmax}_{j \in N_i}(\mathrm{LeakyReLU}(a \cdot e_{ij})) \\
        n_i' &= \mathrm{LN}(\mathrm{ReLU}(
            \textstyle\sum_{j \in N_i} α_{ij} p_{ij} W e_{ij} + W_r n_i)) \\
        \mathrm{logit} &= w \cdot \mathrm{mean}_i [n_i^1; ...; n_i^L]

    α is of each head; selection learns through p. Residual and layer norm are those of the authors'
    code; unlike there, W and W_r are shared by the nodes, as in the paper. Parameters per layer:
    2 D A + 18 D. FLOPs per candidate and layer: 2 F² D (16 + 2 E) + 4 F D A; 16 F² floats are kept.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        attention_width: int,
        heads: int,
        neighbours: tuple[int, ...] = (),
    ) -> None:
        """``neighbours`` (m of each layer) (): all."""
        super().__init__()
        widths = (width, *[attention_width] * layers)
        self.layers = nn.ModuleList(
            _GraphFMLayer(width_in, width_out, heads, kept)
            for (width_in, width_out), kept in zip(
                itertools.pairwise(widths), neighbours or (None,) * layers, strict=True
            )
        )
        self.head = nn.Linear(layers * attention_width, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(S, F, D) -> (S,)."""
        nodes, means = fields, []
        for layer in self.layers:
            nodes = layer(nodes)
            means.append(nodes.mean(1))
        return self.head(torch.cat(means, dim=1)).squeeze(1)


def _of_edges(linear: nn.Linear, nodes: Tensor) -> Tensor:
    """(S, F, D) -> (S, F, K, F): ``linear`` of every n_i ∘ n_j, which is never written out."""
    left_SFKD = nodes.unsqueeze(2) * linear.weight
    out = (left_SFKD.flatten(1, 2) @ nodes.mT).unflatten(1, left_SFKD.shape[1:3])
    return out if linear.bias is None else out + linear.bias.unsqueeze(1)


class _GraphFMLayer(nn.Module):
    def __init__(self, width_in: int, width_out: int, heads: int, neighbours: int | None) -> None:
        super().__init__()
        self.heads, self.neighbours = heads, neighbours
        self.selection = nn.Sequential(
            nn.Linear(width_in, SELECTION_WIDTH), nn.ReLU(), nn.Linear(SELECTION_WIDTH, 1)
        )
        self.attention = nn.Linear(width_in, heads, bias=False)
        self.value = nn.Linear(width_in, width_out, bias=False)
        self.shortcut = nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, nodes: Tensor) -> Tensor:
        """(S, F, D) -> (S, F, A)."""
        chances_SFF = self._chances(nodes)
        kept_SFF = self._kept(chances_SFF.detach()).unsqueeze(2)
        scores_SFEF = F.leaky_relu(_of_edges(self.attention, nodes))
        weights_SFEF = masked_softmax(scores_SFEF, kept_SFF) * chances_SFF.unsqueeze(2)
        # the sum over j of w_ij n_i ∘ n_j is n_i ∘ the sum of w_ij n_j
        neighbours = (weights_SFEF.flatten(1, 2) @ nodes).unflatten(1, weights_SFEF.shape[1:3])
        summed_SFED = nodes.unsqueeze(2) * neighbours
        maps_EaD = self.value.weight.unflatten(0, (self.heads, -1))
        received = torch.einsum("sied,ead->siea", summed_SFED, maps_EaD).flatten(2)
        return self.norm((received + self.shortcut(nodes)).relu())

    def _chances(self, nodes: Tensor) -> Tensor:
        """(S, F, D) -> (S, F, F) of each edge, to be kept."""
        first, activation, second = self.selection
        hidden_SFKF = activation(_of_edges(first, nodes))
        return second(hidden_SFKF.transpose(2, 3)).squeeze(3).sigmoid()

    def _kept(self, chances: Tensor) -> Tensor:
        """(S, F, F) -> bool: the m best of each node."""
        if self.neighbours is None:
            return torch.ones_like(chances, dtype=torch.bool)
        best = chances.topk(self.neighbours, dim=2).indices
        return torch.zeros_like(chances, dtype=torch.bool).scatter(2, best, value=True)
