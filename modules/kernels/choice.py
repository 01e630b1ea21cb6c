"""Which work a kernel of ours takes over from the stock operations: the one place that decides.

Triton and Numba are imported where they are needed alone: without them stock operations search.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from modules.kernels.column import Column
from modules.score import MLPScore, Score
from modules.search import Histories, Selection
from modules.tables import Keys
from modules.whole_tables import WholeKeys

Kernel = Literal["triton", "numba"]

MAX_TOP_K = 128
"""In Triton's kernel: what lives between tiles is K numbers of 8 bytes a candidate, in registers.
"""
READABLE = {
    "triton": (torch.float32, torch.bfloat16, torch.float16, torch.uint8),
    "numba": (torch.float32,),
}
"""Tables that a search kernel can read; uint8: FBGEMM's 8-bit rows."""


def kernel_on(device: torch.device) -> Kernel | None:
    """What compiles our kernels on a device; None: nothing does."""
    name = {"cuda": "triton", "cpu": "numba"}.get(device.type)
    return name if name and _is_installed(name) else None


def searches_fused(keys: Keys, score: Score | MLPScore, k: int) -> bool:
    """Whether :func:`fused_search` can do an exact search: it reads tables that lie whole on this
    device, and its score is a dot product or a cosine of all their columns.
    """
    if not isinstance(keys, WholeKeys) or not isinstance(score, Score) or score.drops:
        return False
    parts = [part for parts in keys.tables.values() for part in parts]
    kernel = kernel_on(parts[0].device)
    return (
        kernel is not None
        and (kernel == "numba" or k <= MAX_TOP_K)
        and all(_is_readable(part, kernel) for part in parts)
    )


def fused_search(
    keys: WholeKeys, queries: Tensor, score: Score, histories: Histories, k: int
) -> Selection:
    """Exact search in one kernel, for what :func:`searches_fused` allows.

    Args:
        keys: of the events.
        queries: (S, A) as ``score.query`` returns them.
        score: of the model.
        histories: of the batch.
        k: events kept for each candidate.
    """
    keys.count_all()
    columns = [
        Column(part, keys.events[name]) for name, parts in keys.tables.items() for part in parts
    ]
    semantic = [len(keys.tables[name]) for name in [*keys.tables][: len(score.semantic)]]
    normalized = sum(semantic) if score.kind == "cosine" else 0
    if kernel_on(columns[0].table.device) == "triton":
        from modules.kernels.top_k_search import search_columns
    else:
        from modules.kernels.host_search import search_columns
    return Selection(
        *search_columns(columns, queries, histories.lengths, histories.counts, k, normalized)
    )


def _is_readable(table: Tensor, kernel: Kernel) -> bool:
    if table.dtype not in READABLE[kernel] or table.shape[1] == 0:
        return False
    if kernel == "numba":  # not a table of width 1 or 2, which is held wider than it is
        return table.is_contiguous()
    # the scale at the end of an 8-bit row is a float32 and has to lie as one
    aligned = table.dtype != torch.uint8 or table.stride(0) % 4 == 0
    return table.stride(1) == 1 and aligned


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
