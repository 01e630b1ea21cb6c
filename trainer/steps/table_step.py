"""A step of one table: look up the rows of a batch, push a given gradient back, update.

Shapes: S rows of a batch, F fields, N ids, D width; n = S F lookups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from sharding.apply import TableOptimizer
from sharding.cluster_plan import choose_plan
from sharding.narrow import ROW_FLOATS
from sharding.plan import FusedBagSharder, ShardingConfig
from trainer.steps.step import Step

TableKind = Literal[
    "dense-adam", "dense-adam-fused", "sparse-adam", "rowwise-adagrad", "two-hashes",
    "quotient-remainder",
]  # fmt: skip
COMPRESSION = 10
"""Ids for each row of the hashed and of the remainder tables."""


class Lookups(NamedTuple):
    """A batch of one table."""

    ids: Tensor
    """(n,)."""
    gradient: Tensor
    """(n, D) of their rows."""


@dataclass(frozen=True, kw_only=True)
class TableStep(Step):
    """What a table's update costs, without a network."""

    table: TableKind = "rowwise-adagrad"
    """dense-adam: torch's Adam of all rows; dense-adam-fused: the same in one kernel; sparse-adam:
    Adam of the rows looked up; rowwise-adagrad: this project's, updated within the backward pass;
    two-hashes, quotient-remainder: a row for 10 ids, combined from two rows, sparse Adam."""
    ids: int = 1_000_000
    """Of the table (N)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table not in get_args(TableKind):
            raise ValueError(
                f"table is one of {', '.join(get_args(TableKind))}; got {self.table!r}."
            )
        least = max(self.fields, COMPRESSION)
        if self.ids < least:
            raise ValueError(
                f"ids must be at least {least}, got {self.ids}: a share of each field."
            )
        if self.table == "rowwise-adagrad" and self.width % ROW_FLOATS:
            raise ValueError(
                f"table='rowwise-adagrad' has rows of multiples of {ROW_FLOATS} floats, got "
                f"width={self.width}: take the next multiple."
            )

    def small(self) -> TableStep:
        """See :meth:`trainer.steps.step.Step.small`."""
        return dataclasses.replace(self, batch=1, ids=max(self.fields, 100))

    def draw(self) -> Lookups:
        """Ids log-uniform within each field's share of all, as Zipf's law has it."""
        share = self.ids // self.fields
        draws_SF = share ** torch.rand(self.batch, self.fields, dtype=torch.float64)
        ids_SF = draws_SF.long() - 1 + share * torch.arange(self.fields)
        return Lookups(ids_SF.flatten(), torch.randn(self.batch * self.fields, self.width))

    def make(self) -> Callable[[Lookups], None]:
        """The table with its optimizer."""
        match self.table:
            case "dense-adam" | "dense-adam-fused":
                table = nn.Embedding(self.ids, self.width)
                fused = self.table == "dense-adam-fused"
                return PlainTable(table, torch.optim.Adam(table.parameters(), fused=fused))
            case "rowwise-adagrad":
                return FusedTable(self.ids, self.width)
            case "sparse-adam":
                table = nn.Embedding(self.ids, self.width, sparse=True)
            case "two-hashes":
                table = TwoHashes(self.ids, self.width)
            case "quotient-remainder":
                table = QuotientRemainder(self.ids, self.width)
        return PlainTable(table, torch.optim.SparseAdam(list(table.parameters())))


class PlainTable:
    """A module of torch's from ids to rows, with an optimizer of torch's."""

    def __init__(self, table: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.table, self.optimizer = table, optimizer

    def __call__(self, batch: Lookups) -> None:
        """A step."""
        self.table(batch.ids).backward(batch.gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()


class FusedTable:
    """A table as the trainer has it, on a plan for one rank: updated within the backward pass."""

    def __init__(self, ids: int, width: int) -> None:
        table = EmbeddingBagConfig(
            name="table", num_embeddings=ids, embedding_dim=width, feature_names=["id"]
        )
        bags = nn.Sequential(EmbeddingBagCollection(tables=[table], device=torch.device("meta")))
        plan = choose_plan(
            bags,
            world_size=1,
            local_world_size=1,
            device_type="cpu",
            lookups_per_rank=4096,
            config=ShardingConfig(),
        )
        self.model = DistributedModelParallel(
            bags,
            env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
            plan=plan,
            sharders=[FusedBagSharder(fused_params=TableOptimizer().fused_params("cpu"))],
            device=torch.device("cpu"),
        )

    def __call__(self, batch: Lookups) -> None:
        """A step."""
        keyed = KeyedJaggedTensor(keys=["id"], values=batch.ids, lengths=torch.ones_like(batch.ids))
        self.model(keyed).wait().values().backward(batch.gradient)


class TwoHashes(nn.Module):
    """An id is the sum of two rows of a table with a tenth of the rows."""

    def __init__(self, ids: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(ids // COMPRESSION, width, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        """(n,) -> (n, D)."""
        buckets = self.rows.num_embeddings
        # two odd multipliers, high bits: multiply-shift hashing
        first, second = ((ids * odd % 2**31) * buckets >> 31 for odd in (0x9E3779B1, 0x85EBCA77))
        return self.rows(first) + self.rows(second)


class QuotientRemainder(nn.Module):
    """An id is the product of a row of its remainder and one of its quotient
    (https://arxiv.org/abs/1909.02107).
    """

    def __init__(self, ids: int, width: int) -> None:
        super().__init__()
        self.remainders = nn.Embedding(ids // COMPRESSION, width, sparse=True)
        self.quotients = nn.Embedding(COMPRESSION + 1, width, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        """(n,) -> (n, D)."""
        buckets = self.remainders.num_embeddings
        return self.remainders(ids % buckets) * self.quotients(ids // buckets)
