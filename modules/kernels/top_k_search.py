r"""Exact search in one kernel: rows are gathered, scored and dropped again, only K numbers leave.

.. math:: T_c = \operatorname{top-}K_j\ \langle q_c, k_j \rangle

The stock path (:func:`modules.search_units.search_by_score`) writes the gathered keys and the
scores, and reads the scores again to find the best. Here a program walks through the history of one
request, ``TILE`` events at a time, for up to ``MAX_SHARED`` of its candidates at once, which share
the gather. What lives from tile to tile is K numbers for each candidate: a score and a place packed
into one integer, so that the order of two is one comparison, and equal scores are told apart by
place (the later event wins).

Bytes for an event, with F fields of w numbers of s bytes: 8F for its ids and s w for each row, of
which those of large tables come from memory. For a candidate: its query, and 9K written. See
docs/gpu.md for registers and instructions, and for what has not been measured.

Shapes: R requests, S candidates, N events of all histories, K kept, A attention width; in a
program C candidates, L events of a tile, W numbers of a field's row.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from modules.jagged import first_rows
from modules.kernels.column import Column

MAX_SHARED = 4
"""Candidates that share a gather. Scores of C candidates take C times the registers; a request of
more is worked on by several programs, whose gathers meet in the cache."""
TILE = 64
"""Events of a step."""

EMPTY = tl.constexpr(-(2**63))
"""Below every packed score."""


def search_columns(
    columns: list[Column],
    queries: Tensor,
    lengths: Tensor,
    counts: Tensor,
    k: int,
    normalized: int = 0,
) -> tuple[Tensor, Tensor]:
    """The ``k`` events of each candidate's history with the highest dot product, best first.

    Args:
        columns: of the keys, side by side.
        queries: (S, A) float32.
        lengths: (R,) int64 events of each history, on the host.
        counts: (R,) int64 candidates of each request, on the host.
        k: at most ``MAX_TOP_K`` of :mod:`modules.kernels.choice`.
        normalized: how many columns, from the first on, are divided by their common length, so that
            their part of the product is a cosine where that of the query has length one too.

    Returns:
        (S, K) int64 rows of the jagged history, 0 where there are fewer, and the (S, K) bool mask
        of those that there are.
    """
    device, shared = queries.device, shared_candidates(counts)
    queries = queries.float().contiguous()
    rows = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    valid = torch.empty(len(queries), k, dtype=torch.bool, device=device)
    work = programs(lengths, counts, shared).to(device, non_blocking=True)
    if len(work):
        widths = tuple(column.width for column in columns)
        kept = max(16, triton.next_power_of_2(k))
        search_kernel[(len(work),)](
            tuple(column.table for column in columns),
            tuple(column.ids for column in columns),
            queries,
            work,
            rows,
            valid,
            k,
            STRIDES=tuple(column.table.stride(0) for column in columns),
            WIDTHS=widths,
            FIRSTS=tuple(itertools.accumulate(widths, initial=0))[:-1],
            A=queries.shape[1],
            NORMALIZED=normalized,
            C=shared,
            L=max(TILE, kept),
            KEPT=kept,
            num_warps=shared,
        )
    return rows, valid


def shared_candidates(counts: Tensor) -> int:
    """C: a power of two."""
    most = int(counts.max()) if len(counts) else 1
    return min(MAX_SHARED, triton.next_power_of_2(max(1, most)))


def programs(lengths: Tensor, counts: Tensor, shared: int) -> Tensor:
    """(programs, 4) int64: first row and length of the history, first candidate, candidates.

    Long histories come first: those that begin last then take the least time.
    """
    parts = (counts + shared - 1) // shared
    request = torch.arange(len(counts)).repeat_interleave(parts)
    before = shared * (torch.arange(len(request)) - first_rows(parts)[request])
    work = torch.stack(
        [
            first_rows(lengths)[request],
            lengths[request],
            first_rows(counts)[request] + before,
            (counts[request] - before).clamp(max=shared),
        ],
        dim=1,
    )
    return work[lengths[request].argsort(descending=True, stable=True)]


@triton.jit
def _packed(scores, places, inside):
    """Integers that order as (score, place) do; ``EMPTY`` outside and at a score of -inf."""
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats below zero order backwards
    packed = (ordered.to(tl.int64) << 32) | places.to(tl.int64)
    return tl.where(inside & (scores != float("-inf")), packed, EMPTY)


@triton.jit
def _keys(table, ids, inside, STRIDE: tl.constexpr, W: tl.constexpr):
    """(L, W) float32 rows, W filled up with zeros to a power of two."""
    row = table + ids[:, None] * STRIDE
    column = tl.arange(0, triton.next_power_of_2(W))[None, :]
    wanted = inside[:, None] & (column < W)
    values = tl.load(row + column, mask=wanted, other=0).to(tl.float32)
    if table.dtype.element_ty == tl.uint8:
        scale_and_least = (row + W).to(tl.pointer_type(tl.float32), bitcast=True)
        scale = tl.load(scale_and_least, mask=inside[:, None], other=0.0)
        least = tl.load(scale_and_least + 1, mask=inside[:, None], other=0.0)
        values = tl.where(wanted, values * scale + least, 0.0)
    return values


@triton.jit
def _products(keys, query, count, C: tl.constexpr, A: tl.constexpr, W: tl.constexpr):
    """(C, L) products of (L, W) keys with W numbers of each query, zeros from ``count`` on.

    One by one: a product of three dimensions at once would be summed across 16 lanes instead of 4.
    """
    column = tl.arange(0, triton.next_power_of_2(W))
    number = tl.arange(0, C)[:, None]
    products = tl.zeros([C, keys.shape[0]], tl.float32)
    for c in tl.static_range(C):
        query_W = tl.load(query + c * A + column, mask=(column < W) & (c < count), other=0.0)
        product_L = tl.sum(keys * query_W[None, :], axis=1)
        products += tl.where(number == c, product_L[None, :], 0.0)
    return products


@triton.jit
def search_kernel(
    tables,
    ids,
    queries,
    work,
    rows,
    valid,
    k,
    STRIDES: tl.constexpr,
    WIDTHS: tl.constexpr,
    FIRSTS: tl.constexpr,
    A: tl.constexpr,
    NORMALIZED: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    KEPT: tl.constexpr,
):
    own = work + 4 * tl.program_id(0)
    first_row, length, first_candidate = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    count = tl.load(own + 3)
    best_CK = tl.full([C, KEPT], EMPTY, tl.int64)  # ascending
    for begin in range(0, length, L):
        place = begin + tl.arange(0, L)
        inside = place < length
        scores_CL = tl.zeros([C, L], tl.float32)
        squares_L = tl.zeros([L], tl.float32)
        for f in tl.static_range(len(WIDTHS)):
            id_L = tl.load(ids[f] + first_row + place, mask=inside, other=0)
            key_LW = _keys(tables[f], id_L, inside, STRIDES[f], WIDTHS[f])
            query = queries + first_candidate * A + FIRSTS[f]
            scores_CL += _products(key_LW, query, count, C, A, WIDTHS[f])
            if f < NORMALIZED:
                squares_L += tl.sum(key_LW * key_LW, axis=1)
            if f == NORMALIZED - 1:
                scores_CL /= tl.maximum(tl.sqrt(squares_L), 1e-12)[None, :]
        packed_CL = _packed(scores_CL, place[None, :], inside[None, :])
        # both ascend and descend in turn: the larger of each pair are the best KEPT of all
        either_CK = tl.maximum(best_CK, tl.topk(packed_CL, KEPT))
        best_CK = tl.bitonic_merge(either_CK)
    slot = KEPT - 1 - tl.arange(0, KEPT)[None, :]  # descending
    candidate = tl.arange(0, C)[:, None]
    out = (first_candidate + candidate) * k + slot
    found = best_CK != EMPTY
    stored = (candidate < count) & (slot < k)
    place = best_CK & 0xFFFFFFFF
    tl.store(rows + out, tl.where(found, first_row + place, 0), mask=stored)
    tl.store(valid + out, found, mask=stored)
