"""Collections of tables: how they are made, started and looked up.

What a table serves is none of their business: that is said in modules/tables.py and
modules/context.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from modules.random import normal

Ids = dict[str, Tensor]
"""Field -> (n,) int64 ids of n events or candidates."""

INIT_ROWS = 1 << 16
"""Rows initialised at a time: bounds the memory of the float64 draws."""


def make_collection(
    tables: dict[str, tuple[str, int, int]], device: torch.device | None, weighted: bool = False
) -> EmbeddingBagCollection:
    """Table -> (field, num_embeddings, width). ``weighted``: it sums rows, by :func:`look_up_sums`;
    else it hands them out, by :func:`look_up`.
    """
    return EmbeddingBagCollection(
        device=device,
        is_weighted=weighted,
        tables=[
            EmbeddingBagConfig(
                name=name, embedding_dim=width, num_embeddings=rows, feature_names=[field]
            )
            for name, (field, rows, width) in tables.items()
        ],
    )


def initialize_shard_(
    weight: Tensor,
    table: str,
    std: float,
    seed: int,
    row: int = 0,
    column: int = 0,
    period: int | None = None,
) -> None:
    """Fills ``weight``, the part of ``table`` from (row, column) on, with N(0, std²).

    A value depends on (seed, table, its row, its column) only: shards of any plan agree. With a
    ``period`` columns repeat after so many.
    """
    columns = torch.arange(column, column + weight.shape[1], device=weight.device)
    if period is not None:
        columns %= period
    table_id = zlib.crc32(table.encode())
    for begin in range(0, weight.shape[0], INIT_ROWS):
        part = weight[begin : begin + INIT_ROWS]
        rows = torch.arange(row + begin, row + begin + len(part), device=weight.device)
        part.copy_(normal(seed, table_id, rows[:, None], columns) * std)


@torch.no_grad()
def initialize_tables_(module: nn.Module, seed: int) -> None:
    """Starts the tables of an unsharded module; sharded ones: ``sharding.apply``."""
    starts = init_stds(module)
    for bags in module.modules():
        if isinstance(bags, EmbeddingBagCollection):
            for name, weight in bags.named_parameters():
                table = name.split(".")[-2]
                initialize_shard_(weight, table, starts[table], seed)


def init_stds(module: nn.Module) -> dict[str, float]:
    """Standard deviation at the start of every table within a module."""
    found: dict[str, float] = {}
    for child in module.modules():
        found |= getattr(child, "init_std", {})
    return found


def ids_of(keyed: KeyedJaggedTensor, names: Iterable[str]) -> Ids:
    """The values of some keys, as views. By ``keyed[name]`` each would take a hundred calls."""
    lengths = keyed.length_per_key()
    of_key = dict(zip(keyed.keys(), keyed.values().split(lengths), strict=True))
    return {name: of_key[name] for name in names}


def one_each(*parts: Ids) -> KeyedJaggedTensor:
    """A bag of one for each id: of a field those of the first part, then those of the next. Every
    field has equally many.

    FBGEMM's pooled kernels update such bags an order of magnitude faster on CPUs than its sequence
    kernels, and the pooled row of one id is the row itself.
    """
    names = [*parts[0]]
    counts = [sum(len(part[name]) for part in parts) for name in names]
    if len({*counts}) > 1:
        raise ValueError(f"Every field must have equally many ids; got {counts} of {names}.")
    values = torch.cat([part[name] for name in names for part in parts])
    offsets = torch.arange(len(values) + 1, device=values.device)
    if not len(values):  # TorchRec knows no batch without bags: an empty one per field
        offsets = offsets.new_zeros(len(names) + 1)
    return KeyedJaggedTensor(
        names,
        values,
        lengths=offsets.diff(),
        offsets=offsets,
        length_per_key=counts,  # else a device is asked
    )


def look_up(bags: EmbeddingBagCollection, bags_of_one: KeyedJaggedTensor) -> Tensor:
    """(n, width) rows of what :func:`one_each` made of n ids per field, fields side by side."""
    rows = _rows_of_bags(bags, bags_of_one)
    return rows if len(bags_of_one.values()) else rows[:0]


def look_up_sums(bags: EmbeddingBagCollection, parts: list[tuple[Ids, Tensor]]) -> list[Tensor]:
    """Weighted sums of rows, with gradients for rows and weights.

    Args:
        bags: a weighted collection.
        parts: (n, k) ids per field, and the (n, k) weights of their rows; n may be another in each.

    Returns:
        (n, width) of each part, fields side by side.
    """
    names, device = [*parts[0][0]], parts[0][1].device
    counts = [len(weights) for _, weights in parts]
    values = [ids[name].flatten() for name in names for ids, _ in parts]
    weights = torch.cat([weights.flatten() for _, weights in parts])
    lengths = torch.cat(
        [torch.full((len(weights),), weights.shape[1], device=device) for _, weights in parts]
    )
    if not sum(counts):
        lengths = lengths.new_zeros(1)
    rows = _rows_of_bags(
        bags,
        KeyedJaggedTensor(
            names,
            torch.cat(values),
            # tables are float32 at least, whatever an autocast makes of the weights
            weights.to(torch.promote_types(weights.dtype, torch.float32)).repeat(len(names)),
            lengths.repeat(len(names)),
            length_per_key=[len(weights)] * len(names),
        ),
    )
    return [*rows[: sum(counts)].split(counts)]


def each_alone(ids: Ids) -> tuple[Ids, Tensor]:
    """(n,) ids as n sums of one row."""
    columns = {name: of_field[:, None] for name, of_field in ids.items()}
    return columns, torch.ones_like(next(iter(columns.values())), dtype=torch.float32)


def _rows_of_bags(bags: EmbeddingBagCollection, ids: KeyedJaggedTensor) -> Tensor:
    """(stride, width), in the order of ``ids.keys()``."""
    out = bags(ids)
    # a sharded collection may answer in another order
    if out.keys() == ids.keys():
        return out.values()
    return torch.cat([out[key] for key in ids.keys()], dim=1)  # noqa: SIM118


def pick_rows(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``, by ``index_select``: on CPUs that and its gradient take a third of the time
    of an indexing.
    """
    return values.index_select(0, rows.flatten()).unflatten(0, rows.shape)
