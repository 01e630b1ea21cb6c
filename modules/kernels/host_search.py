r"""Exact search in one kernel on CPUs: rows are gathered, scored and dropped again.

.. math:: T_c = \operatorname{top-}K_j\ \langle q_c, k_j \rangle

The stock path (:func:`modules.search_units.search_by_score`) writes the gathered keys and the
scores, and reads the scores again to find the best. Here a history is walked through ``TILE``
events at a time. Their keys are copied side by side to where they stay in the nearest cache,
while the rows of the next tile are on their way from memory; the candidates of the request share
them. A score and its place make one integer, so that the order of two is one comparison and of
equal scores the later event wins. The few that are above a candidate's K-th best are put in order
by counting how many are higher, which takes no branches, and merged with the best so far.

What all candidates ask alike, as they have the same recency, is scored once beforehand. Numba
compiles the kernel in each process, in about a second, once for each number of columns that are
left; no code is kept on disk. It holds no lock of the interpreter: the loader works meanwhile.

Shapes: R requests, S candidates, N events of all histories, K kept, A attention width; C candidates
of a request, L events of a tile.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from modules.jagged import first_rows
from modules.kernels.column import Column
from modules.score import NORM_EPS

TILE = 32
"""L."""
EMPTY = -(2**63)
"""Below every packed score."""
_LOW = 2**32 - 1
_EPS = np.float32(NORM_EPS)
_ORDER_FREE = {"contract", "reassoc", "nsz", "arcp"}
"""Sums may be taken in any order, as vector registers want it. NaN and infinities are respected."""


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
        columns: of the keys, side by side; float32, contiguous.
        queries: (S, A).
        lengths: (R,) int64 events of each history.
        counts: (R,) int64 candidates of each request.
        k: events kept for each candidate.
        normalized: how many columns, from the first on, are divided by their common length, so that
            their part of the product is a cosine where that of the query has length one too.

    Returns:
        (S, K) int64 rows of the jagged history, 0 where there are fewer, and the (S, K) bool mask
        of those that there are.

    Raises:
        IndexError: an id is beyond its table.
    """
    for column in columns:
        # seen as unsigned, what is negative is large
        largest = column.ids.numpy().view(np.uint64).max(initial=0)
        if largest >= len(column.table) and len(column.ids):
            raise IndexError(f"id {largest.astype(np.int64)}, in a table of {len(column.table)}")
    rows = torch.zeros(len(queries), k, dtype=torch.int64)
    valid = torch.zeros(len(queries), k, dtype=torch.bool)
    requests = torch.stack([first_rows(lengths), lengths, first_rows(counts), counts], dim=1)
    if len(queries) and k:
        columns, queries, shared_N = _without_alike(columns, queries.detach().float(), normalized)
        _search(
            tuple(column.table.detach().numpy() for column in columns),
            tuple(column.ids.contiguous().numpy() for column in columns),
            queries.contiguous().numpy(),
            shared_N.numpy(),
            requests.numpy(),
            sum(column.width for column in columns[:normalized]),
            np.empty((TILE, queries.shape[1]), np.float32),
            np.empty(TILE, np.float32),
            np.empty((int(counts.max()), k), np.int64),
            np.empty((3, max(k, TILE + 1)), np.int64),
            rows.numpy(),
            valid.numpy(),
        )
    return rows, valid


def _without_alike(
    columns: list[Column], queries: Tensor, normalized: int
) -> tuple[list[Column], Tensor, Tensor]:
    """Scores the columns that all candidates ask alike, as they have the same recency, once.

    Returns:
        The other columns, their part of the queries, and the (N,) scores of those taken out; (0,)
        where there are none. Normalized columns stay, and so does one in any case.
    """
    parts = queries.split([column.width for column in columns], dim=1)
    asked = [*zip(columns, parts, strict=True)]
    alike = [place for place in range(normalized, len(columns)) if _is_alike(*asked[place])]
    alike = alike[: len(columns) - 1]
    scores = [
        # no matrix product, which an autocast would round
        (column.table.detach() * part[0]).sum(dim=1).index_select(0, column.ids)
        for column, part in (asked[place] for place in alike)
    ]
    kept = [place for place in range(len(columns)) if place not in alike]
    return (
        [columns[place] for place in kept],
        torch.cat([parts[place] for place in kept], dim=1),
        sum(scores) if scores else queries.new_zeros(0),
    )


def _is_alike(column: Column, part: Tensor) -> bool:
    # scoring a whole table pays where it has far fewer rows than there are events, and where
    # several candidates share it
    small = 2 * len(column.table) <= len(column.ids)
    return small and len(part) > 1 and bool((part == part[0]).all())


@intrinsic
def _fetch(typing, table, row):
    """Asks the memory for the first line of a row."""
    signature = types.void(table, row)

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride, *_ = cgutils.unpack_tuple(builder, array.strides)
        address = builder.add(
            builder.ptrtoint(array.data, stride.type), builder.mul(arguments[1], stride)
        )
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0",
        )
        # to be read, to be kept in all caches, data
        options = [number(0), number(3), number(1)]
        builder.call(prefetch, [builder.inttoptr(address, byte), *options])
        return context.get_dummy_value()

    return signature, generate


# Indices are unsigned where they come from data: Numba would ask of each whether it counts from
# the end, and could not use vector registers.


@numba.njit(error_model="numpy", fastmath=_ORDER_FREE)
def _divide_by_length(keys_LA, width):
    for event in range(len(keys_LA)):
        squared = np.float32(0)
        for i in range(width):
            squared += keys_LA[event, i] * keys_LA[event, i]
        factor = np.float32(1) / max(np.sqrt(squared), _EPS)
        for i in range(width):
            keys_LA[event, i] *= factor


@numba.njit(error_model="numpy")
def _turned(bits):
    """Bits of a float that order as its value does, and back: below zero they order backwards."""
    return np.int32(bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF)))


@numba.njit(error_model="numpy")
def _packed(score, place):
    """An integer that orders as (score, place) does; ``EMPTY`` at -inf. NaN is highest, so that it
    comes to the loss, which ends a training.
    """
    if np.isnan(score):
        return (np.int64(0x7FFFFFFF) << 32) | place
    ordered = _turned(np.float32(score).view(np.int32))
    return EMPTY if score == -np.inf else (np.int64(ordered) << 32) | place


@numba.njit(error_model="numpy")
def _score_of(packed):
    """NaN of ``EMPTY``: no score is below it."""
    return np.int32(_turned(np.int32(packed >> 32))).view(np.float32)


@numba.njit(error_model="numpy")
def _merge(best_K, found, count, ordered, merged):
    """The highest of both, descending, into ``best_K``."""
    for i in range(count):
        higher = 0
        for j in range(count):
            higher += found[j] > found[i]
        ordered[np.uint64(higher)] = found[i]
    ordered[np.uint64(count)] = EMPTY
    of_best, of_found = np.uint64(0), np.uint64(0)
    for place in range(len(best_K)):
        a, b = best_K[of_best], ordered[of_found]
        merged[place] = max(a, b)
        of_best += np.uint64(a >= b)
        of_found += np.uint64(a < b)
    for place in range(len(best_K)):
        best_K[place] = merged[place]


@numba.njit(error_model="numpy", fastmath=_ORDER_FREE, nogil=True)
def _search(
    tables,
    ids,
    queries_SA,
    shared_N,
    requests,
    normalized,
    keys_LA,
    scores_L,
    best_CK,
    spare,
    rows_SK,
    valid_SK,
):
    found, ordered, merged = spare[0], spare[1], spare[2]
    shared_L = np.zeros(TILE, np.float32)
    for first_row, length, first_candidate, candidates in requests:
        best_CK[:candidates] = EMPTY
        for begin in range(first_row, first_row + length, TILE):
            events = min(TILE, first_row + length - begin)
            after = min(begin + 2 * TILE, first_row + length)
            column = 0
            for field in range(len(tables)):
                table, of_field = tables[field], ids[field]
                for event in range(begin + events, after):
                    _fetch(table, of_field[np.uint64(event)])
                for event in range(events):
                    row = np.uint64(of_field[np.uint64(begin + event)])
                    for i in range(table.shape[1]):
                        keys_LA[np.uint64(event), np.uint64(column + i)] = table[row, i]
                column += table.shape[1]
            if normalized:
                _divide_by_length(keys_LA[:events], normalized)
            if len(shared_N):
                shared_L = shared_N[begin : begin + events]
            for candidate in range(candidates):
                query_A = queries_SA[first_candidate + candidate]
                best_K = best_CK[candidate]
                for event in range(events):
                    score = shared_L[event]
                    for i in range(len(query_A)):
                        score += query_A[i] * keys_LA[event, i]
                    scores_L[event] = score
                least, count = _score_of(best_K[-1]), 0
                for event in range(events):
                    found[np.uint64(count)] = event
                    count += not scores_L[event] < least
                for i in range(count):
                    event = found[i]
                    found[i] = _packed(scores_L[np.uint64(event)], begin + event)
                if count:
                    _merge(best_K, found, count, ordered, merged)
        for candidate in range(candidates):
            for place in range(best_CK.shape[1]):
                best = best_CK[candidate, place]
                if best != EMPTY:
                    rows_SK[first_candidate + candidate, place] = best & _LOW
                    valid_SK[first_candidate + candidate, place] = True
