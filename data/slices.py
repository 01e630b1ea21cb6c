"""Slices of columns copied side by side, without the index of every element.

Compiled by Numba in each process when first called; no lock of the interpreter is held, so a model
trains meanwhile.
"""

from __future__ import annotations

import numba
import numpy as np


def copy_slices(
    column: np.ndarray, begins: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: np.ndarray
) -> None:
    """``out[p : p + n] = column[b : b + n]`` for each of R slices.

    Args:
        column: integers.
        begins: (R,) int64, ``b``.
        lengths: (R,) int64, ``n``.
        places: (R,) int64, ``p``.
        out: int64.

    Raises:
        IndexError: a slice is not within ``column`` or ``out``.
    """
    _refuse_negative(lengths)
    for firsts, of in ((begins, column), (places, out)):
        # not firsts + lengths, which may be beyond the largest number
        if len(firsts) and not (firsts.min() >= 0 and (firsts <= len(of) - lengths).all()):
            raise IndexError(f"a slice is not within {len(of):,} elements")
    _copy(column, begins, lengths, places, out)


def count_down(lengths: np.ndarray) -> np.ndarray:
    """``n, n - 1, ..., 1`` for each of the (R,) int64 lengths.

    >>> count_down(np.array([3, 0, 2])).tolist()
    [3, 2, 1, 2, 1]

    Raises:
        IndexError: a length is negative.
    """
    _refuse_negative(lengths)
    return _count_down(lengths, np.empty(lengths.sum(), np.int64))


def _refuse_negative(lengths: np.ndarray) -> None:
    if len(lengths) and lengths.min() < 0:
        raise IndexError(f"a slice has {lengths.min()} elements")


@numba.njit(nogil=True)
def _copy(
    column: np.ndarray, begins: np.ndarray, lengths: np.ndarray, places: np.ndarray, out: np.ndarray
) -> None:
    for r in range(len(lengths)):
        source = column[begins[r] : begins[r] + lengths[r]]
        target = out[places[r] : places[r] + lengths[r]]
        for i in range(len(target)):
            target[i] = source[i]


@numba.njit(nogil=True)
def _count_down(lengths: np.ndarray, out: np.ndarray) -> np.ndarray:
    place = 0
    for length in lengths:
        for rank in range(length, 0, -1):
            out[place] = rank
            place += 1
    return out
