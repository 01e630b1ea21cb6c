"""Applying a sharding plan: from a model with tables on the meta device to a distributed one."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingEnv, ShardingPlan, ShardingType

from modules.bags import init_stds, initialize_shard_
from modules.ranker import LifelongRanker
from sharding.batch_norm import use_global_batch_norm
from sharding.narrow import widths_within
from sharding.plan import FusedBagSharder, PlanError
from sharding.weighted_bags import WeightedBags

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
    weight_decay: float = 0.0
    """Lambda of an L2 penalty: adds lambda times a row to its gradient in each step that looks the
    row up, once however often it does. The dense L2 of other trainers (FuxiCTR, BARS) does so in
    every step for every row: the same for a row that each batch holds; a row that a share p of the
    batches hold is held back by p lambda, and none fades while it is away."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind is one of {', '.join(_KINDS)}; got {self.kind!r}.")
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number from 0 up, got {self.weight_decay}.")

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
    starts, widths = init_stds(model), widths_within(model)
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
        plan=plan,
        sharders=[FusedBagSharder(fused_params=optimizer.fused_params(device.type))],
        device=device,
    )
    if optimizer.weight_decay:
        _decay_rows(sharded, optimizer.weight_decay)
    for _, bags in sharded_collections(sharded):
        _initialize(bags, starts, widths, seed)
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


def set_table_learning_rate(model: DistributedModelParallel, learning_rate: float) -> None:
    """Lets the fused kernels of all tables go on with another learning rate."""
    for group in model.fused_optimizer.param_groups:
        group["lr"] = learning_rate
    model.fused_optimizer.step()  # hands it to the kernels, which update within the backward pass


def _decay_rows(model: nn.Module, weight_decay: float) -> None:
    """Adds L2 to the gradients of the rows that a step looks up.

    FBGEMM's own ``weight_decay`` is no way: its kernels for CPUs ignore it, those for GPUs too with
    sgd and adagrad, and with adam it is another penalty (decoupled). So the gradient is changed on
    its way into the kernel, on the rank that holds the row. There all ranks' lookups have come
    together, and TorchRec has divided by their number: any plan and world size does the same.

    Raises:
        ValueError: a collection sums rows: what leaves it is no single row's.
    """
    if any(isinstance(bags, WeightedBags) for _, bags in sharded_collections(model)):
        raise ValueError(
            "weight_decay goes with tables that sum no rows: LifelongRanker(sums_rows=False)."
        )

    def regularize(kernel: nn.Module, args: tuple[KeyedJaggedTensor], rows: Tensor) -> None:
        if not rows.requires_grad:
            return
        tables = kernel.config.embedding_tables
        widths = [table.local_cols for table in tables for _ in table.feature_names]
        starts = [0, *itertools.accumulate(table.local_rows for table in tables)]
        firsts = [first for first, t in zip(starts, tables, strict=False) for _ in t.feature_names]
        share_SF = lookup_shares(args[0], torch.tensor(firsts, device=rows.device))
        share = share_SF.repeat_interleave(torch.tensor(widths, device=rows.device), dim=1)
        held = rows.detach()
        rows.register_hook(lambda gradient: gradient.addcmul(held, share, value=weight_decay))

    for _, bags in sharded_collections(model):
        for lookup in bags._lookups:
            for kernel in lookup._emb_modules:  # none where this rank has no shard
                assert isinstance(kernel, BatchedFusedEmbeddingBag)
                kernel.register_forward_hook(regularize)


def lookup_shares(ids: KeyedJaggedTensor, first_rows: Tensor) -> Tensor:
    """(S, F): 1 / n in a bag that is one of n lookups of its row, 0 in an empty bag.

    Args:
        ids: of F features, S bags of at most one id each.
        first_rows: (F,) number of the first row of each feature's table, all tables counted on.
    """
    lengths_FS = ids.lengths().view(len(first_rows), -1)
    rows = ids.values() + first_rows.repeat_interleave(lengths_FS.sum(dim=1))
    _, place, count = rows.unique(return_inverse=True, return_counts=True)
    shares = torch.zeros(lengths_FS.shape, device=rows.device)
    shares[lengths_FS > 0] = 1 / count[place]
    return shares.T


@torch.no_grad()
def _initialize(
    bags: ShardedEmbeddingBagCollection,
    init_std: dict[str, float],
    widths: dict[str, int],
    seed: int,
) -> None:
    for name, weight in bags.state_dict().items():
        table = name.split(".")[-2]
        for local in weight.local_shards():
            row, column = local.metadata.shard_offsets
            initialize_shard_(
                local.tensor, table, init_std[table], seed, row, column, widths.get(table)
            )


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
    return (
        KeyedJaggedTensor(
            keys=ids.keys(),
            values=ids.values(),
            weights=ids.weights_or_none(),
            lengths=padded.flatten(),
        ),
    )


def _drop_padding(
    bags: ShardedEmbeddingBagCollection, args: tuple[KeyedJaggedTensor], rows: Any
) -> KeyedTensor:
    rows = rows.wait() if hasattr(rows, "wait") else rows
    return KeyedTensor(
        keys=rows.keys(),
        length_per_key=rows.length_per_key(),
        values=rows.values()[: bags.twofold_stride],
    )
