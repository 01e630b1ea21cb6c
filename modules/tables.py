"""Embedding tables of events and candidates: which serve attention, which representation.

Shapes: N events, S candidates, A attention width, R representation width (sums over the fields).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from modules.random import normal

Ids = dict[str, Tensor]
"""Field -> (n,) int64 ids of n events or candidates."""

INIT_ROWS = 1 << 16
"""Rows initialised at a time: bounds the memory of the float64 draws."""


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """One field of an event and of a candidate."""

    name: str
    num_embeddings: int
    """Rows of its tables; row 0 is "unknown"."""
    attention_dim: int = 16
    """Width of its attention rows (its share of A)."""
    representation_dim: int = 16
    """Width of its representation rows (its share of R)."""
    semantic: bool = True
    """Says what the event is about (item, category), not how it came (recency, action), for which
    a candidate has id 0. The score scales the two groups apart."""
    attention_init_std: float = 0.01
    """Standard deviation of its attention rows at the start."""
    representation_init_std: float = 0.01
    """Standard deviation of its representation rows at the start."""

    def __post_init__(self) -> None:
        if self.num_embeddings < 1:
            raise ValueError(f"Field {self.name!r}: num_embeddings must be at least 1.")
        for side in ("attention_dim", "representation_dim"):
            if getattr(self, side) < 1:
                raise ValueError(
                    f"Field {self.name!r}: {side} must be at least 1, got {getattr(self, side)}."
                )
        for side in ("attention_init_std", "representation_init_std"):
            if not 0 <= getattr(self, side) < math.inf:
                raise ValueError(
                    f"Field {self.name!r}: {side} must be 0 or more, got {getattr(self, side)}."
                )


class Rows(NamedTuple):
    """Embedding rows of N events and S candidates."""

    keys: Tensor
    """(N, A) attention rows of the events."""
    queries: Tensor
    """(S, A) attention rows of the candidates."""
    values: Tensor
    """(N, R) representation rows of the events."""
    targets: Tensor
    """(S, R) representation rows of the candidates."""


class DecoupledTables(nn.Module):
    """Two tables per field, one for attention and one for representation.

    DARE, https://arxiv.org/abs/2410.02604, section 3: gradients of the two tasks never meet.
    """

    def __init__(self, fields: tuple[FieldConfig, ...], device: torch.device | None = None) -> None:
        super().__init__()
        self.attention = _collection(
            {f"attention_{f.name}": (f, f.attention_dim) for f in fields}, device
        )
        self.representation = _collection(
            {f"representation_{f.name}": (f, f.representation_dim) for f in fields}, device
        )
        self.init_std = {f"attention_{f.name}": f.attention_init_std for f in fields} | {
            f"representation_{f.name}": f.representation_init_std for f in fields
        }

    def attend(self, events: Ids, candidates: Ids) -> tuple[Tensor, Tensor]:
        """``keys, queries``: all that a search needs."""
        return _split(_lookup(self.attention, _concat(events, candidates)), events)

    def forward(self, events: Ids, candidates: Ids) -> Rows:
        """All four. One lookup per collection, so that each row is updated once a step."""
        ids = _concat(events, candidates)
        keys, queries = _split(_lookup(self.attention, ids), events)
        values, targets = _split(_lookup(self.representation, ids), events)
        return Rows(keys, queries, values, targets)


class SharedTables(nn.Module):
    """One table per field serves both tasks (TWIN, https://arxiv.org/abs/2302.02352)."""

    def __init__(self, fields: tuple[FieldConfig, ...], device: torch.device | None = None) -> None:
        super().__init__()
        for f in fields:
            for what in ("dim", "init_std"):
                attention = getattr(f, f"attention_{what}")
                representation = getattr(f, f"representation_{what}")
                if attention != representation:
                    raise ValueError(
                        f"Shared tables serve both tasks, but field {f.name!r} has "
                        f"attention_{what} {attention} and representation_{what} {representation}. "
                        "Make them equal, or take sharing='decoupled'."
                    )
        self.shared = _collection(
            {f"shared_{f.name}": (f, f.attention_dim) for f in fields}, device
        )
        self.init_std = {f"shared_{f.name}": f.attention_init_std for f in fields}

    def attend(self, events: Ids, candidates: Ids) -> tuple[Tensor, Tensor]:
        """``keys, queries``: all that a search needs."""
        return _split(_lookup(self.shared, _concat(events, candidates)), events)

    def forward(self, events: Ids, candidates: Ids) -> Rows:
        """All four; keys are the values and queries the targets."""
        keys, queries = self.attend(events, candidates)
        return Rows(keys, queries, keys, queries)


Tables = DecoupledTables | SharedTables


def initialize_shard_(
    weight: Tensor, table: str, std: float, seed: int, row: int = 0, column: int = 0
) -> None:
    """Fills ``weight``, the part of ``table`` from (row, column) on, with N(0, std²).

    A value depends on (seed, table, its row, its column) only: shards of any plan agree.
    """
    columns = torch.arange(column, column + weight.shape[1], device=weight.device)
    table_id = zlib.crc32(table.encode())
    for begin in range(0, weight.shape[0], INIT_ROWS):
        part = weight[begin : begin + INIT_ROWS]
        rows = torch.arange(row + begin, row + begin + len(part), device=weight.device)
        part.copy_(normal(seed, table_id, rows[:, None], columns) * std)


@torch.no_grad()
def initialize_tables_(tables: Tables, seed: int) -> None:
    """Starts the tables of an unsharded model; sharded ones: ``sharding.apply``."""
    for name, weight in tables.named_parameters():
        table = name.split(".")[-2]
        initialize_shard_(weight, table, tables.init_std[table], seed)


def _collection(
    tables: dict[str, tuple[FieldConfig, int]], device: torch.device | None
) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        device=device,
        tables=[
            EmbeddingBagConfig(
                name=name,
                embedding_dim=width,
                num_embeddings=field.num_embeddings,
                feature_names=[field.name],
            )
            for name, (field, width) in tables.items()
        ],
    )


def _concat(events: Ids, candidates: Ids) -> Ids:
    return {name: torch.cat([ids, candidates[name]]) for name, ids in events.items()}


def _split(rows: Tensor, events: Ids) -> tuple[Tensor, Tensor]:
    count = next(iter(events.values())).numel()
    return rows[:count], rows[count:]


def _lookup(bags: EmbeddingBagCollection, ids: Ids) -> Tensor:
    """(n, width) rows of n ids per field, fields side by side.

    One bag of one per id: FBGEMM's pooled kernels update such bags an order of magnitude faster on
    CPUs than its sequence kernels, and the pooled row of one id is the row itself.
    """
    keys = list(ids)
    values = torch.cat(list(ids.values()))
    out = bags(KeyedJaggedTensor(keys=keys, values=values, lengths=torch.ones_like(values)))
    # a sharded collection may answer in another order
    return out.values() if out.keys() == keys else torch.cat([out[key] for key in keys], dim=1)
