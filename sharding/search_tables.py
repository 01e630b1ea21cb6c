"""Attention tables that a search reads without asking other ranks.

A search looks up every event of every history: on sharded tables nearly all traffic between ranks
is its. It carries no gradient, so it may read from wherever the rows are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from modules.ranker import LifelongRanker
from modules.tables import ATTENTION_ROLES, WholeTables
from sharding.narrow import widths_within


class _Held(NamedTuple):
    """What this rank holds of a table."""

    parts: list[tuple[Tensor, int, int]]
    """The weights, live, their first row, their first column."""
    size: torch.Size
    """Of the whole table, as it is held."""
    width: int
    """Columns that are a row; narrow ones are repeated behind it."""


class Replica(WholeTables):
    """A copy of all rows on every rank, as old as its last refresh."""

    def __init__(self, held: dict[str, _Held], dtype: torch.dtype, device: torch.device) -> None:
        """``held`` of each field's table."""
        copies = {
            name: torch.empty(table.size, dtype=dtype, device=device)
            for name, table in held.items()
        }
        super().__init__({name: copies[name][:, : held[name].width] for name in held})
        self._copies, self._held = copies, held

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the rows as they are now. Collective."""
        for name, copy in self._copies.items():
            copy.zero_()
            for part, row, column in self._held[name].parts:
                copy[row : row + part.shape[0], column : column + part.shape[1]] = part
            # each number is one rank's, and 0 with all others, whatever the plan
            dist.all_reduce(copy)


def read_live_tables(ranker: LifelongRanker) -> None:
    """Lets searches read the tables themselves where they lie whole on this rank: in a world of
    one, unless a plan cuts them by columns.
    """
    if dist.get_world_size() > 1 or any(len(t.parts) > 1 for t in _held(ranker).values()):
        return
    _install(
        ranker,
        lambda tables: WholeTables(
            {name: held.parts[0][0][:, : held.width] for name, held in tables.items()}
        ),
    )


def read_replica(ranker: LifelongRanker, dtype: torch.dtype, device: torch.device) -> None:
    """Lets searches read a copy of the attention tables, which :func:`refresh_replica` renews.

    It takes 4 bytes a number (bfloat16: 2) of every attention table on every rank, and a refresh
    sends about twice as many: it pays where the searches of the steps between two refreshes look
    up more rows than the tables have.
    """
    _install(ranker, lambda tables: Replica(tables, dtype, device))
    refresh_replica(ranker)


def refresh_replica(model: nn.Module) -> None:
    """Renews the copy, where there is one. Collective."""
    for module in model.modules():
        if isinstance(module, Replica):
            module.refresh()


def _install(ranker: LifelongRanker, make: Callable[[dict[str, _Held]], WholeTables]) -> None:
    held = _held(ranker)
    for collection, roles in ranker.tables.roles.items():
        if {*ATTENTION_ROLES} & {*roles}:
            tables = {f.name: held[f"{collection}_{f.name}"] for f in ranker.fields}
            ranker.tables.whole[collection] = make(tables)


def _held(ranker: LifelongRanker) -> dict[str, _Held]:
    """Of each table of events and candidates."""
    narrow = widths_within(ranker.tables)
    found: dict[str, _Held] = {}
    for bags in ranker.tables.modules():
        if isinstance(bags, ShardedEmbeddingBagCollection):
            for key, weight in bags.state_dict().items():
                table = key.split(".")[-2]
                parts = [(s.tensor, *s.metadata.shard_offsets) for s in weight.local_shards()]
                found[table] = _Held(parts, weight.size(), narrow.get(table, weight.size(1)))
    return found
