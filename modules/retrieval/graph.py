r"""Models that send rows along the graph of purchases, on PyTorch Geometric (extra ``graph``).

Shapes: U users, I items, E purchases, D width. Nodes are the U users, then the I items. A forward
pass propagates the whole table, so its gradient is dense: memory and time of a step grow with all
users, items and purchases, whatever the batch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn import models as pyg
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import spmm, to_torch_csr_tensor

from modules.retrieval.config import GCMCConfig, LightGCNConfig, NGCFConfig
from modules.retrieval.loss import Compared, Pairs
from modules.retrieval.vectors import Histories, Vectors

LEAK = 0.2
"""Slope of NGCF's LeakyReLU below zero, as in its authors' code."""


def adjacency(users: Tensor, items: Tensor, num_users: int, num_items: int) -> Tensor:
    r"""Normalised adjacency of the graph, sparse CSR of U + I rows and columns.

    .. math:: \hat A = D^{-1/2} \begin{pmatrix} 0 & R \\ R^\top & 0 \end{pmatrix} D^{-1/2}

    Nodes without purchases have empty rows.

    Args:
        users: (E,) int64.
        items: (E,) int64; no purchase twice.
        num_users: U.
        num_items: I.
    """
    ends = torch.stack([users, items + num_users])
    edges = torch.cat([ends, ends.flip(0)], dim=1)
    nodes = num_users + num_items
    edges, weights = gcn_norm(edges, None, nodes, add_self_loops=False, dtype=torch.float32)
    with warnings.catch_warnings():
        # torch says of every CSR tensor that it is a beta feature
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        return to_torch_csr_tensor(edges, weights, (nodes, nodes))


class _Spread(torch.autograd.Function):
    """Product with a symmetric sparse matrix. Its gradient is the same product; torch would
    transpose the matrix first, in each step, which costs four times as much.
    """

    @staticmethod
    def forward(ctx: Any, graph: Tensor, rows: Tensor) -> Tensor:
        ctx.graph = graph
        return spmm(graph, rows, reduce="sum")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, spmm(ctx.graph, gradient, reduce="sum")


class Spread(MessagePassing):
    """Each node receives its neighbours' rows, weighted by the graph."""

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, rows: Tensor, graph: Tensor, _: None = None) -> Tensor:
        """(nodes, D) -> (nodes, D); the third argument is that of PyG's convolutions."""
        return self.propagate(graph, x=rows)

    def message_and_aggregate(self, graph: Tensor, x: Tensor) -> Tensor:
        """All messages as one product."""
        return _Spread.apply(graph, x)


class GraphRetriever(nn.Module, ABC):
    """Vectors of all nodes by one propagation, whose rows a batch picks."""

    def __init__(self, graph: Tensor, num_users: int) -> None:
        """``graph``: see :func:`adjacency`."""
        super().__init__()
        self.num_users = num_users
        # made of the log, not learned
        self.register_buffer("graph", graph, persistent=False)

    @abstractmethod
    def start(self) -> Tensor:
        """(U + I, D) rows that are sent."""

    @abstractmethod
    def propagate(self) -> tuple[Tensor, Tensor]:
        """Vectors (U, D') and (I, D')."""

    def forward(self, batch: Pairs) -> Compared:
        """Vectors of the batch; its rows are those that were sent, not what came of them."""
        users, items = self.propagate()
        own = self.start()
        positives, negatives = batch.positives, batch.negatives
        return Compared(
            users[batch.users],
            items[positives],
            items[negatives],
            rows=(
                own[batch.users],
                own[positives + self.num_users],
                own[negatives + self.num_users],
            ),
        )

    @torch.no_grad()
    def encode(self, histories: Histories) -> Vectors:
        """Vectors of all nodes; ``histories`` are not read."""
        return Vectors(*self.propagate())

    def _halves(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        return nodes[: self.num_users], nodes[self.num_users :]


class LightGCN(GraphRetriever):
    r"""Propagation alone (https://arxiv.org/abs/2002.02126, equations 7 and 8), PyG's model.

    .. math:: E = \frac{1}{L + 1} \sum_{l=0}^{L} \hat A^l E^{(0)}
    """

    def __init__(self, graph: Tensor, num_users: int, config: LightGCNConfig) -> None:
        super().__init__(graph, num_users)
        self.model = pyg.LightGCN(len(graph), config.width, config.layers)
        # the graph is normalised already, and PyG's LGConv would transpose it in each step
        self.model.convs = nn.ModuleList(Spread() for _ in range(config.layers))
        nn.init.normal_(self.model.embedding.weight, std=config.init_std)

    def start(self) -> Tensor:
        """(U + I, D)."""
        return self.model.embedding.weight

    def propagate(self) -> tuple[Tensor, Tensor]:
        """(U, D) and (I, D)."""
        return self._halves(self.model.get_embedding(self.graph))


class NGCFConv(nn.Module):
    r"""One layer of NGCF (https://arxiv.org/abs/1905.08108, equation 7).

    .. math:: E' = \mathrm{LeakyReLU}((\hat A + I) E W_1 + (\hat A E \odot E) W_2)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = Spread()
        self.sum = nn.Linear(width, width, bias=False)
        self.product = nn.Linear(width, width, bias=False)

    def forward(self, rows: Tensor, graph: Tensor) -> Tensor:
        """(nodes, D) -> (nodes, D)."""
        received = self.spread(rows, graph)
        return F.leaky_relu(self.sum(rows + received) + self.product(received * rows), LEAK)


class NGCF(GraphRetriever):
    """Neural graph collaborative filtering (https://arxiv.org/abs/1905.08108).

    A vector is the rows and every layer's output side by side (equation 9). As in the authors' code
    outputs lose a share of their numbers in training and have length 1 in the vector, and only
    there.
    """

    def __init__(self, graph: Tensor, num_users: int, config: NGCFConfig) -> None:
        super().__init__(graph, num_users)
        self.rows = nn.Parameter(torch.empty(len(graph), config.width))
        nn.init.normal_(self.rows, std=config.init_std)
        self.layers = nn.ModuleList(NGCFConv(config.width) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)

    def start(self) -> Tensor:
        """(U + I, D)."""
        return self.rows

    def propagate(self) -> tuple[Tensor, Tensor]:
        """(U, (L + 1) D) and (I, (L + 1) D)."""
        rows = self.rows
        outputs = [rows]
        for layer in self.layers:
            rows = self.dropout(layer(rows, self.graph))
            outputs.append(F.normalize(rows, dim=1))
        return self._halves(torch.cat(outputs, dim=1))


class GCMC(GraphRetriever):
    r"""Graph convolutional matrix completion (https://arxiv.org/abs/1706.02263), of purchases.

    .. math:: Z = \mathrm{ReLU}(\hat A E) W, \qquad s_{u, i} = z_u^\top Q z_i

    What is bought has no rating: there is one level, so the softmax over levels is gone, and a loss
    over items takes its place. Nodes have no features but who they are, so that the matrix of the
    level is the table E, and W is one for users and items. Dropout silences whole nodes.
    """

    def __init__(self, graph: Tensor, num_users: int, config: GCMCConfig) -> None:
        super().__init__(graph, num_users)
        self.rows = nn.Parameter(torch.empty(len(graph), config.width))
        nn.init.normal_(self.rows, std=config.init_std)
        self.spread = Spread()
        self.dense = nn.Linear(config.width, config.width, bias=False)
        self.decoder = nn.Linear(config.width, config.width, bias=False)
        nn.init.eye_(self.decoder.weight)
        self.dropout = config.dropout

    def start(self) -> Tensor:
        """(U + I, D)."""
        return self.rows

    def propagate(self) -> tuple[Tensor, Tensor]:
        """(U, D) and (I, D); Q is applied to the items."""
        sends = F.dropout(self.rows.new_ones(len(self.rows), 1), self.dropout, self.training)
        users, items = self._halves(self.dense(self.spread(self.rows * sends, self.graph).relu()))
        return users, self.decoder(items)
