"""Which work a kernel of ours takes over from the stock operations: the one place that decides.

Triton is imported where it is needed alone: without it, and on CPUs, everything works as before.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from modules.score import MLPScore, Score
from modules.search import Histories, Selection
from modules.tables import Keys
from modules.whole_tables import WholeKeys

MAX_TOP_K = 128
"""What lives between tiles is K numbers of 8 bytes a candidate, in registers."""
READABLE = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
"""Tables of the search kernel; uint8: FBGEMM's 8-bit rows."""


def runs_on(device: torch.device) -> bool:
    """Whether kernels of ours run on a device at all."""
    return device.type == "cuda" and _has_triton()


def searches_fused(keys: Keys, score: Score | MLPScore, k: int) -> bool:
    """Whether :func:`fused_search` can do an exact search: it reads tables that lie whole on this
    device, and its score is a dot product or a cosine of all their columns.
    """
    return (
        isinstance(keys, WholeKeys)
        and isinstance(score, Score)
        and not score.drops
        and k <= MAX_TOP_K
        and all(_is_readable(part) for parts in keys.tables.values() for part in parts)
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
    from modules.kernels.top_k_search import Column, search_columns

    keys.count_all()
    columns = [
        Column(part, keys.events[name]) for name, parts in keys.tables.items() for part in parts
    ]
    semantic = [len(keys.tables[name]) for name in [*keys.tables][: len(score.semantic)]]
    normalized = sum(semantic) if score.kind == "cosine" else 0
    return Selection(
        *search_columns(columns, queries, histories.lengths, histories.counts, k, normalized)
    )


def _is_readable(table: Tensor) -> bool:
    # the scale at the end of an 8-bit row is a float32 and has to lie as one
    aligned = table.dtype != torch.uint8 or table.stride(0) % 4 == 0
    return (
        runs_on(table.device)
        and table.dtype in READABLE
        and table.stride(1) == 1
        and table.shape[1] > 0
        and aligned
    )


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
