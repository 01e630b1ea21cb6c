"""Sharded tables that sum rows by weights, and tell where each weight's gradient belongs.

TorchRec sends the weights of a KeyedJaggedTensor to the ranks that hold the rows, outside of
autograd: the gradient that FBGEMM finds for them there ends there. Here it goes home.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.dist_data import KJTAllToAll, KJTAllToAllSplitsAwaitable
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext
from torchrec.distributed.sharding.dp_sharding import DpPooledEmbeddingSharding
from torchrec.distributed.types import Awaitable

from sharding.replicated import ReplicableBags


@dataclass
class _Journey:
    """Of weights from this rank to owners of rows, and of others' weights to this one."""

    weights: Tensor
    """(n,) of this rank."""
    places: Tensor
    """(sent,) which of them was sent; column-wise sends each to several owners."""
    exchange: KJTAllToAllSplitsAwaitable | None = None
    """Under way; None once it has arrived: it holds on to all that was sent."""
    sent: list[int] = field(default_factory=list)
    """Weights that went to each rank."""
    received: list[int] = field(default_factory=list)
    """Weights that came from each."""
    bags: list[int] = field(default_factory=list)
    """They came in so many."""

    def arrive(self) -> None:
        """Notes what the exchange knows, once it was waited for."""
        self.sent, self.received = self.exchange._input_splits[-1], self.exchange._output_splits[-1]
        self.bags = self.exchange._stride_per_rank
        self.exchange = None


class WeightedBags(ReplicableBags):
    """A weighted collection whose weights get gradients, whatever the plan.

    The place of a weight among its rank's is put in its stead, so that it comes out of TorchRec's
    permuting and bucketing where the weight would. Just before the exchange the weight takes its
    place again, and the list of places stays here: it is the way home. Ids and weights travel as
    they always do; backward, one number comes back for each.
    """

    def _create_input_dist(self, input_feature_names: list[str]) -> None:
        super()._create_input_dist(input_feature_names)
        for distribution in self._input_dists:
            for module in distribution.modules():
                if isinstance(module, KJTAllToAll):
                    module.register_forward_pre_hook(self._depart)
                    module.register_forward_hook(self._note_exchange)
        for lookup in self._lookups:
            if not lookup._emb_modules:
                lookup.register_forward_hook(_keep_in_graph)

    def input_dist(
        self, ctx: EmbeddingBagCollectionContext, features: KeyedJaggedTensor
    ) -> Awaitable[Awaitable[KJTList]]:
        """Sends ids and weights to the owners of their rows."""
        self._weights = ctx.weights = features.weights()
        ctx.journeys = []
        self._departing = ctx.journeys  # a pipeline may send a batch before it computes the last
        places = torch.arange(len(self._weights), dtype=torch.int32, device=features.device())
        sent = super().input_dist(ctx, with_weights(features, places.view(torch.float32)))
        del self._weights, self._departing
        return sent

    def _depart(
        self, module: nn.Module, args: tuple[KeyedJaggedTensor]
    ) -> tuple[KeyedJaggedTensor]:
        (ids,) = args
        places = ids.weights().view(torch.int32)
        self._departing.append(_Journey(self._weights, places))
        return (with_weights(ids, self._weights.detach().index_select(0, places)),)

    def _note_exchange(self, module: nn.Module, args: Any, out: KJTAllToAllSplitsAwaitable) -> None:
        self._departing[-1].exchange = out

    def compute_and_output_dist(self, ctx: EmbeddingBagCollectionContext, input: KJTList) -> Any:
        """Sums rows and sends the sums to who asked for them."""
        journeys, arrived = iter(ctx.journeys), []
        for sharding, ids in zip(self._embedding_shardings, input, strict=True):
            if isinstance(sharding, DpPooledEmbeddingSharding):  # they have not left
                weights = ctx.weights.index_select(0, ids.weights().view(torch.int32))
            else:
                journey = next(journeys)
                journey.arrive()
                weights = _Arrived.apply(journey.weights, ids.weights(), journey, ids)
            arrived.append(with_weights(ids, weights))
        return super().compute_and_output_dist(ctx, KJTList(arrived))


class _Arrived(torch.autograd.Function):
    """The weights that arrived here; backward, their gradients go where they came from."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, arrived: Tensor, journey: _Journey, ids: KeyedJaggedTensor
    ) -> Tensor:
        ctx.journey, ctx.offsets, ctx.features = journey, ids.offsets(), len(ids.keys())
        return arrived.view_as(arrived)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        journey = ctx.journey
        if len(journey.sent) > 1:
            by_origin = _by_origin(gradient, ctx.offsets, ctx.features, journey.bags)
            gradient = by_origin.new_empty(len(journey.places))
            dist.all_to_all_single(gradient, by_origin, journey.sent, journey.received)
        zeros = torch.zeros_like(journey.weights)
        return zeros.index_add_(0, journey.places, gradient), None, None, None


def _by_origin(numbers: Tensor, offsets: Tensor, features: int, bags: list[int]) -> Tensor:
    """Sorted by (feature, rank, bag) -> by (rank, feature, bag).

    Args:
        numbers: (n,).
        offsets: (features x all bags + 1,) of bags.
        features: how many.
        bags: of each rank.
    """
    ranks = len(bags)
    if features < 2:
        return numbers
    bounds = [0, *itertools.accumulate(bags * features)]
    lengths = offsets[torch.tensor(bounds, device=offsets.device)].diff()
    order = torch.arange(features * ranks, dtype=torch.int32, device=numbers.device)
    order = order.view(features, ranks).T.flatten()
    _, permuted, _ = torch.ops.fbgemm.permute_1D_sparse_data(
        order, lengths, numbers, None, len(numbers)
    )
    return permuted


def _keep_in_graph(lookup: nn.Module, args: tuple[KeyedJaggedTensor], sums: Tensor) -> Tensor:
    """Of a rank that holds no row: it, too, has to send gradients home, if none."""
    return sums + 0 * args[0].weights().sum()


def with_weights(ids: KeyedJaggedTensor, weights: Tensor) -> KeyedJaggedTensor:
    """The same bags, weighted otherwise."""
    return KeyedJaggedTensor(
        keys=ids.keys(),
        values=ids.values(),
        weights=weights,
        lengths=ids.lengths_or_none(),
        offsets=ids.offsets_or_none(),
        stride=ids.stride(),
        length_per_key=ids.length_per_key_or_none(),
        offset_per_key=ids.offset_per_key_or_none(),
    )
