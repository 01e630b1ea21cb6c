"""Applying a sharding plan: from a model with tables on the meta device to a distributed one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingEnv, ShardingPlan, ShardingType

from modules.ranker import LifelongRanker
from modules.tables import initialize_shard_
from sharding.batch_norm import use_global_batch_norm
from sharding.plan import FusedBagSharder, PlanError

_KINDS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}


@dataclass(frozen=True, kw_only=True)
class TableOptimizer:
    """Fused into the backward pass: only the rows that were looked up are read or written."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    """adam runs on CUDA only; FBGEMM has no CPU kernel for it."""
    learning_rate: float = 0.05
    """Of all tables."""
    eps: float = 1e-8
    """Keeps the first steps finite; sgd has none."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind is one of {', '.join(_KINDS)}; got {self.kind!r}.")
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    def fused_params(self, device_type: str) -> dict[str, Any]:
        """What TorchRec's sharders want.

        Raises:
            PlanError: FBGEMM has no such kernel on the device.
        """
        if self.kind == "adam" and device_type == "cpu":
            raise PlanError(
                "FBGEMM's fused Adam runs on CUDA only; on CPUs take rowwise_adagrad, adagrad or "
                "sgd (--tables.kind)."
            )
        params = {"optimizer": _KINDS[self.kind], "learning_rate": self.learning_rate}
        return params if self.kind == "sgd" else params | {"eps": self.eps}


def shard(
    model: LifelongRanker,
    plan: ShardingPlan,
    *,
    optimizer: TableOptimizer,
    device: torch.device,
    seed: int,
) -> DistributedModelParallel:
    """Shards the tables by ``plan`` over the default process group and replicates the rest.

    Values at the start depend on ``seed`` only: every plan and world size begins with the same
    tables, and rank 0's dense parameters go to all.
    """
    use_global_batch_norm(model)
    init_std = model.tables.init_std
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
        plan=plan,
        sharders=[FusedBagSharder(fused_params=optimizer.fused_params(device.type))],
        device=device,
    )
    for _, bags in sharded_collections(sharded):
        _initialize(bags, init_std, seed)
        if dist.get_backend() == dist.Backend.GLOO and _has_row_wise(bags):
            bags.register_forward_pre_hook(_pad_to_common_stride)
            bags.register_forward_hook(_drop_padding)
    return sharded


def sharded_collections(model: nn.Module) -> list[tuple[str, ShardedEmbeddingBagCollection]]:
    """Path and module of every sharded collection."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, ShardedEmbeddingBagCollection)
    ]


@torch.no_grad()
def _initialize(bags: ShardedEmbeddingBagCollection, init_std: dict[str, float], seed: int) -> None:
    for name, weight in bags.state_dict().items():
        table = name.split(".")[-2]
        for local in weight.local_shards():
            row, column = local.metadata.shard_offsets
            initialize_shard_(local.tensor, table, init_std[table], seed, row, column)


def _has_row_wise(bags: ShardedEmbeddingBagCollection) -> bool:
    return any(
        sharding.sharding_type == ShardingType.ROW_WISE.value
        for sharding in bags.module_sharding_plan.values()
    )


def _pad_to_common_stride(
    bags: ShardedEmbeddingBagCollection, args: tuple[KeyedJaggedTensor]
) -> tuple[KeyedJaggedTensor]:
    """Appends empty bags: zero rows without gradient, dropped again from the output.

    Row-wise sharding returns its rows by a reduce-scatter, which gloo emulates by an all-gather
    that wants equal sizes; ranks look up different numbers of rows.
    """
    (ids,) = args
    bags.twofold_stride = ids.stride()
    longest = torch.tensor(ids.stride(), device=ids.device())
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - ids.stride()
    lengths = ids.lengths().view(len(ids.keys()), -1)
    padded = torch.cat([lengths, lengths.new_zeros(len(lengths), missing)], dim=1)
    return (KeyedJaggedTensor(keys=ids.keys(), values=ids.values(), lengths=padded.flatten()),)


def _drop_padding(
    bags: ShardedEmbeddingBagCollection, args: tuple[KeyedJaggedTensor], rows: Any
) -> KeyedTensor:
    rows = rows.wait() if hasattr(rows, "wait") else rows
    return KeyedTensor(
        keys=rows.keys(),
        length_per_key=rows.length_per_key(),
        values=rows.values()[: bags.twofold_stride],
    )
