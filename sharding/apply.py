"""Applying a sharding plan: from a model with tables on the meta device to a distributed one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import Tensor, nn
from torchrec import DataType, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DataParallelWrapper
from torchrec.distributed.types import ShardingEnv, ShardingPlan, ShardingType

from modules.bags import init_stds, initialize_shard_
from modules.ranker import LifelongRanker
from sharding.batch_norm import use_global_batch_norm
from sharding.narrow import widths_within
from sharding.plan import FusedBagSharder, PlanError, ShardingConfig, collections
from sharding.replicated import DATA_PARALLEL, held_shards
from sharding.weighted_bags import WeightedBags

_KINDS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}


_DATA_TYPES = {
    "float32": (DataType.FP32, torch.float32),
    "float16": (DataType.FP16, torch.float16),
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

    dtype: Literal["float32", "float16"] = "float32"
    """Of the tables' numbers. float16 halves the tables; sums, gradients and the optimizer's state
    stay float32, but each update is rounded to 11 bits: one below a 2048th of its number may be
    lost. There is no bfloat16: FBGEMM's kernels for CPUs do not know it."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind is one of {', '.join(_KINDS)}; got {self.kind!r}.")
        if self.dtype not in _DATA_TYPES:
            raise ValueError(
                f"dtype of tables is one of {', '.join(_DATA_TYPES)}; got {self.dtype!r}."
            )
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
        if device_type == "cpu":
            # the loader and FBGEMM's forward pass refuse what is beyond a table; to look a third
            # time would cost a twentieth of a step
            params["bounds_check_mode"] = BoundsCheckMode.NONE
        return params if self.kind == "sgd" else params | {"eps": self.eps}

    @property
    def replicable(self) -> bool:
        """Whether a dense gradient trains a table as a sparse one does: Adam and weight decay move
        a row for having been looked up, whatever its gradient, and a replica does not know that.
        Nor are gradients of float16 tables float32 there.
        """
        return self.kind != "adam" and not self.weight_decay and self.dtype == "float32"


def kinds_for(optimizer: TableOptimizer, config: ShardingConfig) -> ShardingConfig:
    """Without replicas, where the optimizer has none.

    Raises:
        PlanError: the config wants them all the same.
    """
    if optimizer.replicable:
        return config
    kinds = tuple(kind for kind in config.kinds if kind != DATA_PARALLEL)
    if not kinds or DATA_PARALLEL in config.table_kinds.values():
        raise PlanError(
            "data_parallel tables go with rowwise_adagrad, adagrad and sgd, without weight decay, "
            f"in float32; got --tables.kind {optimizer.kind}, weight_decay "
            f"{optimizer.weight_decay:g}, dtype {optimizer.dtype}. Leave data_parallel out of "
            "--sharding.kinds and --sharding.table-kinds."
        )
    return dataclasses.replace(config, kinds=kinds)


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

    Raises:
        PlanError: the plan replicates a table whose optimizer does not go with that.
    """
    replicas = sorted(
        table
        for of_module in plan.plan.values()
        for table, sharding in of_module.items()
        if sharding.sharding_type == DATA_PARALLEL
    )
    if replicas:
        kinds_for(optimizer, ShardingConfig(table_kinds=dict.fromkeys(replicas, DATA_PARALLEL)))
    use_global_batch_norm(model)
    _hold_tables_as(model, optimizer.dtype)
    starts, widths = init_stds(model), widths_within(model)
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
        plan=plan,
        sharders=[FusedBagSharder(fused_params=optimizer.fused_params(device.type))],
        device=device,
        data_parallel_wrapper=_Alone() if dist.get_world_size() == 1 else None,
    )
    if optimizer.weight_decay:
        _decay_rows(sharded, optimizer.weight_decay)
    for _, bags in sharded_collections(sharded):
        _initialize(bags, starts, widths, seed)
        if dist.get_backend() == dist.Backend.GLOO and _has_row_wise(bags):
            bags.register_forward_pre_hook(_pad_to_common_stride)
            bags.register_forward_hook(_drop_padding)
    return sharded


def _hold_tables_as(model: nn.Module, dtype: str) -> None:
    """Of tables that have no memory yet."""
    data_type, of_torch = _DATA_TYPES[dtype]
    for _, bags in collections(model):
        for table in bags.embedding_bag_configs():
            table.data_type = data_type
            module = bags.embedding_bags[table.name]
            module.weight = nn.Parameter(module.weight.to(of_torch))


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
    for table, rows, (row, column) in held_shards(bags.state_dict()):
        initialize_shard_(rows, table, init_std[table], seed, row, column, widths.get(table))


class _Alone(DataParallelWrapper):
    """In the place of DistributedDataParallel, which costs a hundredth of a step: the gradients of
    one rank are the mean over all.
    """

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Only brings the model to its device, as the default does."""
        dmp.module.to(device)


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
