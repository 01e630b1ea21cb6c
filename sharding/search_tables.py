"""Attention tables that a search reads without asking other ranks.

A search looks up every event of every history: on sharded tables nearly all traffic between ranks
is its. It carries no gradient, so it may read from wherever the rows are whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardMetadata

from modules.bags import Ids
from modules.ranker import LifelongRanker
from modules.tables import ATTENTION_ROLES
from modules.whole_tables import WholeTables
from sharding.narrow import widths_within
from sharding.replicated import DATA_PARALLEL

REPLICA_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}
"""What a copy may be held in, and how its memory is typed."""
SCALE_BYTES = 8
"""Of an 8-bit row of FBGEMM: its scale and its least value, float32 each."""
QUANTISED_ROWS = 1 << 16
"""Rows quantised at a time: bounds the memory of what is then copied."""


class _Shard(NamedTuple):
    """A rank's part of a table."""

    rank: int | None
    """That holds it; None: every rank does."""
    row: int
    column: int
    rows: int
    columns: int
    """Without the repetitions of a narrow row."""
    weight: Tensor | None
    """Live, on that rank."""

    @property
    def everywhere(self) -> bool:
        """Whether a search on any rank may read it live."""
        return self.rank is None or dist.get_world_size() == 1


_Tables = dict[str, list[_Shard]]
"""Field -> its table, from left to right."""


class Replica(WholeTables):
    r"""A copy of all rows on every rank, as old as its last refresh.

    int8 is FBGEMM's row-wise quantisation, by the rank that holds the row: a byte for each number,

    .. math:: \hat x = \min x + s \, q, \quad s = (\max x - \min x) / 255, \quad q \in 0 \dots 255

    over the columns of one shard, so that no rank needs another's columns for a scale. Up to 8
    columns, where that is no smaller, bfloat16 stands in. Replicated tables are read live.
    """

    def __init__(self, shards: _Tables, dtype: torch.dtype, device: torch.device) -> None:
        tables: dict[str, list[Tensor]] = {}
        live = {name for name, of_table in shards.items() if of_table[0].rank is None}
        self._places: list[tuple[_Shard, Tensor]] = []
        for name, of_table in shards.items():
            if name in live:
                tables[name] = [of_table[0].weight]
                continue
            num_embeddings = max(shard.row + shard.rows for shard in of_table)
            parts: dict[int, Tensor] = {}
            for shard in of_table:
                if shard.column not in parts:
                    parts[shard.column] = _empty(num_embeddings, shard.columns, dtype, device)
                place = parts[shard.column][shard.row : shard.row + shard.rows]
                self._places.append((shard, place))
            tables[name] = [*parts.values()]
        super().__init__(tables)
        self.live = live
        """Fields whose tables are replicated, and no part of the copy."""

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the rows as they are now. Collective: every shard is sent once by its rank, in the
        form and to the place that it has in the copy, so nothing is held twice.
        """
        under_way = []
        for shard, place in self._places:  # in the same order on all ranks
            if shard.weight is not None:
                _fill(place, shard.weight)
            if dist.get_world_size() > 1 and place.numel():
                of_bytes = place.view(torch.uint8)  # not all backends send bfloat16
                under_way.append(dist.broadcast(of_bytes, src=shard.rank, async_op=True))
        for sending in under_way:
            sending.wait()


def _empty(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a copy."""
    if dtype == torch.uint8 and columns <= SCALE_BYTES:
        dtype = torch.bfloat16
    width = columns + SCALE_BYTES if dtype == torch.uint8 else columns
    return torch.empty(rows, width, dtype=dtype, device=device)


def _fill(place: Tensor, weight: Tensor) -> None:
    """Writes rows as ``place`` holds them."""
    if place.dtype != torch.uint8:
        place.copy_(weight)
        return
    for to, rows in zip(place.split(QUANTISED_ROWS), weight.split(QUANTISED_ROWS), strict=True):
        to.copy_(torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows.float()))


class SpreadTables(WholeTables):
    """Tables whose shards lie on several ranks: the rows that a search will read are fetched first.

    Three collectives for all shards together: how many ids, the ids, their rows. TorchRec's lookup
    takes four for each kind of sharding, and sends the length of each bag, which is 1.
    """

    def __init__(self, shards: _Tables) -> None:
        super().__init__({name: [] for name in shards})
        self._of_tables = shards
        self._live = {
            name: of_table[0].weight
            for name, of_table in shards.items()
            if len(of_table) == 1 and of_table[0].weight is not None
        }
        """Tables that this rank reads itself."""
        spread = [(n, shard) for n, of in shards.items() for shard in of if not shard.everywhere]
        self._spread = sorted(spread, key=lambda named: named[1].rank)
        ranks = [shard.rank for _, shard in self._spread]
        self._shards_of = [ranks.count(rank) for rank in range(dist.get_world_size())]

    @torch.no_grad()
    def at_hand(self, *asked: Ids) -> tuple[WholeTables, list[Ids]]:
        """See :class:`modules.whole_tables.WholeTables`. Collective."""
        ids = {name: torch.cat([of[name] for of in asked]) for name in self.tables}
        self.count(ids)
        places = [self._places(name, shard, ids[name]) for name, shard in self._spread]
        wanted = [
            ids[name][of_shard] - shard.row
            for (name, shard), of_shard in zip(self._spread, places, strict=True)
        ]
        rows: dict[str, Tensor] = {}
        parts = self._fetch(wanted)
        for (name, shard), of_shard, part in zip(self._spread, places, parts, strict=True):
            if len(self._of_tables[name]) == 1:
                rows[name] = part
                continue
            if name not in rows:
                rows[name] = part.new_empty(len(ids[name]), self._width(name))
            rows[name][of_shard, shard.column : shard.column + shard.columns] = part
        whole = WholeTables({name: [(rows | self._live)[name]] for name in self.tables})
        sizes = [len(next(iter(of.values()))) for of in asked]
        at = {
            name: (of_field if name in self._live else torch.arange(len(of_field))).split(sizes)
            for name, of_field in ids.items()
        }
        return whole, [{name: parts[i] for name, parts in at.items()} for i in range(len(asked))]

    def _places(self, name: str, shard: _Shard, ids: Tensor) -> slice | Tensor:
        """Of the ids that are asked of a shard."""
        if name in self._live:
            return slice(0)
        if all(other.row == shard.row for other in self._of_tables[name]):
            return slice(None)
        return ((shard.row <= ids) & (ids < shard.row + shard.rows)).nonzero().squeeze(1)

    def _width(self, name: str) -> int:
        return max(shard.column + shard.columns for shard in self._of_tables[name])

    def _fetch(self, wanted: list[Tensor]) -> list[Tensor]:
        """(n,) rows wanted of each shard -> (n, columns)."""
        shards = [shard for _, shard in self._spread]
        held = [shard for shard in shards if shard.rank == dist.get_rank()]
        at_each, of_each = self._shards_of, [len(held)] * dist.get_world_size()
        counts = [len(of_shard) for of_shard in wanted]
        asked = self._exchange(torch.tensor(counts), at_each, of_each).tolist()
        ids = self._exchange(torch.cat(wanted), _sums(counts, at_each), _sums(asked, of_each))
        found = [
            self._read(shard.weight, of_shard).flatten()
            for shard, of_shard in zip(held * len(of_each), ids.split(asked), strict=True)
        ]
        sent = [len(numbers) for numbers in found]
        received = [n * shard.columns for n, shard in zip(counts, shards, strict=True)]
        rows = self._exchange(
            torch.cat([torch.empty(0), *found]), _sums(sent, of_each), _sums(received, at_each)
        )
        return [
            part.view(-1, shard.columns)
            for part, shard in zip(rows.split(received), shards, strict=True)
        ]

    def _exchange(self, numbers: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """``sent``, ``received``: how many go to each rank, and come from each."""
        out = numbers.new_empty(sum(received))
        dist.all_to_all_single(out, numbers, received, sent)
        return out


def _sums(numbers: list[int], sizes: list[int]) -> list[int]:
    """Of consecutive groups of these sizes.

    >>> _sums([1, 2, 3], [2, 0, 1])
    [3, 0, 3]
    """
    rest = iter(numbers)
    return [sum(itertools.islice(rest, size)) for size in sizes]


def read_live_tables(ranker: LifelongRanker) -> None:
    """Lets searches read the attention tables themselves: where they lie whole on every rank, block
    by block, else, on CPUs, from the ranks that hold them.
    """
    if all(shard.everywhere for of in _attention_shards(ranker).values() for shard in of):
        _install(
            ranker,
            lambda shards: WholeTables(
                {name: [s.weight for s in of_table] for name, of_table in shards.items()}
            ),
        )
    elif dist.get_backend() == dist.Backend.GLOO:
        _install(ranker, SpreadTables)


def read_replica(ranker: LifelongRanker, dtype: str, device: torch.device) -> None:
    """Lets searches read a copy of the attention tables, which :func:`refresh_replica` renews.

    Every rank holds all of it; a row 16 wide takes 64 bytes in float32, 32 in bfloat16, 24 in int8.
    A refresh sends as much to every rank but the owner: it pays where the searches of the steps
    between two refreshes look up more rows than the tables have.

    Args:
        ranker: with sharded tables.
        dtype: one of :data:`REPLICA_DTYPES`.
        device: of the copy.
    """
    _install(ranker, lambda shards: Replica(shards, REPLICA_DTYPES[dtype], device))
    refresh_replica(ranker)


def refresh_replica(model: nn.Module) -> None:
    """Renews the copy, where there is one. Collective."""
    for module in model.modules():
        if isinstance(module, Replica):
            module.refresh()


def replica_parts(model: nn.Module) -> dict[str, Tensor]:
    """Memory of the copy by name, for a checkpoint that is taken between two renewals; none where
    there is no copy. The same on every rank.
    """
    return {
        f"{path}.{field}.{place}": part
        for path, module in model.named_modules()
        if isinstance(module, Replica)
        for field, parts in module.tables.items()
        if field not in module.live
        for place, part in enumerate(parts)
    }


def _install(ranker: LifelongRanker, make: Callable[[_Tables], WholeTables]) -> None:
    shards = _attention_shards(ranker)
    for collection in _attention_collections(ranker):
        tables = {f.name: shards[f"{collection}_{f.name}"] for f in ranker.fields}
        ranker.tables.whole[collection] = make(tables)


def _attention_collections(ranker: LifelongRanker) -> list[str]:
    return [name for name, roles in ranker.tables.roles.items() if {*ATTENTION_ROLES} & {*roles}]


def _attention_shards(ranker: LifelongRanker) -> _Tables:
    shards = _shards(ranker)
    tables = (f"{name}_{f.name}" for name in _attention_collections(ranker) for f in ranker.fields)
    return {table: shards[table] for table in tables}


def _shards(ranker: LifelongRanker) -> _Tables:
    """By table, not field; the same on all ranks but for the weights."""
    narrow = widths_within(ranker.tables)
    found: _Tables = {}
    for bags in ranker.tables.modules():
        if isinstance(bags, ShardedEmbeddingBagCollection):
            for key, held in bags.state_dict().items():
                table = key.split(".")[-2]
                width = narrow.get(table, held.size(1))
                if bags.module_sharding_plan[table].sharding_type == DATA_PARALLEL:
                    rows = held.detach().as_subclass(Tensor)[:, :width]
                    found[table] = [_Shard(None, 0, 0, len(rows), width, rows)]
                    continue
                here = {tuple(s.metadata.shard_offsets): s.tensor for s in held.local_shards()}
                shards = [
                    _shard(shard, here.get(tuple(shard.shard_offsets)), width)
                    for shard in held.metadata().shards_metadata
                ]
                found[table] = sorted(shards, key=lambda shard: (shard.column, shard.row))
    return found


def _shard(of_plan: ShardMetadata, weight: Tensor | None, width: int) -> _Shard:
    (row, column), (rows, columns) = of_plan.shard_offsets, of_plan.shard_sizes
    columns = min(columns, width)  # a narrow row is never cut: only its repetitions are left out
    weight = None if weight is None else weight[:, :columns]
    return _Shard(of_plan.placement.rank(), row, column, rows, columns, weight)
