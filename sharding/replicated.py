"""Tables that every rank holds whole: where their gradient is cheaper to send than their rows.

TorchRec's data-parallel tables have a dense gradient, an all-reduce of it (DDP) and whatever
optimizer the trainer steps. Here they are updated within the backward pass, by the optimizer of all
other tables, whose state has the same name: nothing that trains, saves or loads tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.dp_sharding import DpPooledEmbeddingSharding
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.types import LazyAwaitable, LazyNoWait
from torchrec.optim.fused import EmptyFusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

DATA_PARALLEL = "data_parallel"
DENSE = "dense"
"""FBGEMM's kernel for it."""


class ReplicatedOptimizer(KeyedOptimizer):
    r"""Of the replicated tables of one kernel; what FBGEMM's fused kernels do to theirs.

    With g a row's mean gradient over ranks and w the row, of D numbers,

    .. math:: m \leftarrow m + \overline{g^2}, \quad w \leftarrow w - \eta g / (\sqrt m + \epsilon)

    where the mean of squares is over the row (``EXACT_ROWWISE_ADAGRAD``) or each square stands for
    itself (``EXACT_ADAGRAD``); ``EXACT_SGD``: :math:`w \leftarrow w - \eta g`. A row that nobody
    has looked up has g = 0 and stays as it is, so a dense gradient and a sparse one agree. With
    Adam they would not.
    """

    def __init__(self, kernel: BatchedDenseEmbeddingBag) -> None:
        fused = kernel.config.fused_params
        self._kind: EmbOptimType = fused["optimizer"]
        self._eps = fused.get("eps", 0.0)
        self._weights = kernel.emb_module.split_embedding_weights()
        params, state = {}, {}
        for (table, weight), rows in zip(
            kernel.named_parameters_by_table(), self._weights, strict=True
        ):
            weight._in_backward_optimizers = [EmptyFusedOptimizer()]  # no other one may have it
            params[f"embedding_bags.{table}.weight"] = weight
            if (momentum := self._momentum(rows)) is not None:
                state[weight] = {f"{table}.momentum1": momentum}
        self._momenta = [next(iter(of_table.values())) for of_table in state.values()]
        groups = [{"params": [*params.values()], "lr": fused["learning_rate"]}]
        super().__init__(params, state, groups)
        kernel.emb_module.weights.register_post_accumulate_grad_hook(self._update)

    def _momentum(self, rows: Tensor) -> Tensor | None:
        if self._kind == EmbOptimType.EXACT_SGD:
            return None
        per_row = self._kind == EmbOptimType.EXACT_ROWWISE_ADAGRAD
        return rows.new_zeros(len(rows) if per_row else rows.shape)

    @torch.no_grad()
    def _update(self, weights: Tensor) -> None:
        """With the whole step's gradient of this rank in ``weights.grad``. Collective."""
        gradient, weights.grad = weights.grad, None
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
        (group,) = self.param_groups
        parts = gradient.split([rows.numel() for rows in self._weights])
        for place, (rows, part) in enumerate(zip(self._weights, parts, strict=True)):
            g = part.view_as(rows)
            if self._kind != EmbOptimType.EXACT_SGD:
                g = self._scaled(g, self._momenta[place])
            rows.sub_(g, alpha=group["lr"])

    def _scaled(self, g: Tensor, momentum: Tensor) -> Tensor:
        """Adagrad's direction, its state brought up to date."""
        if momentum.dim() == g.dim():
            return g / momentum.addcmul_(g, g).sqrt().add_(self._eps)
        momentum += g.square().mean(dim=1)
        return g / momentum.sqrt().add_(self._eps)[:, None]

    def step(self, closure: Any = None) -> None:
        """Nothing: the backward pass has done it, by the learning rate of ``param_groups``."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Nothing: no gradient outlives the backward pass."""


class ReplicableBags(ShardedEmbeddingBagCollection):
    """A sharded collection, some of whose tables may be replicated."""

    def forward(self, ids: KeyedJaggedTensor) -> LazyAwaitable[KeyedTensor]:
        """As TorchRec's; but whole tables of the only rank answer without its five stages of an
        exchange, which take half a millisecond of a lookup there.
        """
        if not self._answers_itself():
            return super().forward(ids)
        (sharding,), (lookup,) = self._embedding_shardings, self._lookups
        if (order := sharding.feature_names()) != ids.keys():
            ids = ids.permute([ids.keys().index(name) for name in order])
        rows = lookup(ids)
        return LazyNoWait(KeyedTensor(self._embedding_names, self._embedding_dims, rows))

    def _answers_itself(self) -> bool:
        shardings = self._embedding_shardings
        return (
            self._env.world_size == 1
            and len(shardings) == 1
            and isinstance(shardings[0], TwPooledEmbeddingSharding)
        )

    def init_data_parallel(self) -> None:
        """In the place of DDP, whose gradient would wait for somebody to use it."""
        optimizers = [self._optim]
        for sharding, lookup in zip(self._embedding_shardings, self._lookups, strict=True):
            if isinstance(sharding, DpPooledEmbeddingSharding):
                optimizers += [ReplicatedOptimizer(kernel) for kernel in lookup._emb_modules]
                # TorchRec goes on to take it out of DDP; past nn.Module, it is no part of itself
                object.__setattr__(lookup, "module", lookup)
        self._optim = CombinedOptimizer(optimizers)


def held_shards(
    state: Mapping[str, Any], *, once: bool = False
) -> list[tuple[str, Tensor, tuple[int, int]]]:
    """Table, rows, and where they begin (row, column), of all that this rank holds.

    Args:
        state: ``state_dict()`` of a sharded collection.
        once: for sums over ranks: leaves replicated tables to the first.
    """
    found = []
    for key, weight in state.items():
        table = key.split(".")[-2]
        if hasattr(weight, "local_shards"):
            found += [
                (table, shard.tensor, tuple(shard.metadata.shard_offsets))
                for shard in weight.local_shards()
            ]
        elif not once or dist.get_rank() == 0:
            found.append((table, weight.detach().as_subclass(Tensor), (0, 0)))
    return found
