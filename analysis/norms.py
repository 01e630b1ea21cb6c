"""Length of the rows of a table, by how often the log names them.

Shapes: n rows of a table, d its width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.store import EventStore

DECILES = 10


def frequencies(store: EventStore, field: str) -> np.ndarray:
    """(num_embeddings,) events of each id."""
    size = dict(store.fields)[field]
    counts = np.zeros(size, np.int64)
    for partition in store.partitions:
        counts += np.bincount(partition.events[field], minlength=size)
    return counts


def row_norms(shards: Iterable[tuple[Tensor, int]], rows: int, device: torch.device) -> np.ndarray:
    """(n,) lengths of all rows of a sharded table: collective.

    Args:
        shards: of this rank, each with the number of its first row; any columns.
        rows: of the whole table.
        device: where they are summed; 8 bytes a row.
    """
    squares = torch.zeros(rows, dtype=torch.float64, device=device)
    for shard, first in shards:
        squares[first : first + len(shard)] += torch.linalg.vector_norm(
            shard.detach(), dim=1, dtype=torch.float64
        ).square()
    dist.all_reduce(squares)
    return squares.sqrt().cpu().numpy()


def norms_by_frequency(norms: np.ndarray, frequency: np.ndarray | None) -> dict[str, Any]:
    """Mean and standard deviation, over all rows that the log names and by decile of frequency.

    Row 0, "unknown", is left out. Where no frequencies are known all rows are one part.
    """
    named = np.arange(len(norms)) > 0
    if frequency is not None:
        named &= frequency > 0
    chosen = norms[named]
    result: dict[str, Any] = {"rows": len(chosen), **_moments(chosen), "deciles": []}
    if frequency is not None and len(chosen):
        order = np.argsort(frequency[named], kind="stable")
        result["deciles"] = [
            {
                "frequency": float(frequency[named][part].mean()),
                "rows": len(part),
                **_moments(chosen[part]),
            }
            for part in np.array_split(order, DECILES)
            if len(part)
        ]
    return result


def _moments(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return {"mean": None, "std": None}
    return {"mean": float(values.mean()), "std": float(values.std())}
