"""Random numbers that depend on what they are for, not on who draws them.

A generator's stream depends on how much was drawn before, so ranks and shards would draw different
numbers for the same row. Here a number is a hash of its coordinates (seed, table, row, column, or
seed, request, candidate): every world size and every sharding plan gets the same one.
"""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed 64-bit integer
_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # SplitMix64's finaliser


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts the sign bit in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift_right(x, 31)


def hash_coordinates(*coordinates: Tensor | int) -> Tensor:
    """int64 hash of broadcastable integer coordinates (SplitMix64, Steele et al. 2014)."""
    state = torch.zeros((), dtype=torch.int64)
    for coordinate in coordinates:
        if not isinstance(coordinate, Tensor):
            coordinate = torch.tensor(coordinate, dtype=torch.int64)
        state = _mix(state + _GOLDEN + _mix(coordinate + _GOLDEN))
    return state


def uniform(*coordinates: Tensor | int) -> Tensor:
    """float64 in the open interval (0, 1), one for each element of the broadcast coordinates."""
    # one bit less than a double holds, so that the half above the largest number is kept: never 1
    bits = _shift_right(hash_coordinates(*coordinates), 12)
    return (bits.double() + 0.5) * 2.0**-52


def normal(*coordinates: Tensor | int) -> Tensor:
    """float64 standard normal, by inversion of :func:`uniform`."""
    return torch.special.ndtri(uniform(*coordinates))


def hyperplanes(width: int, count: int) -> Tensor:
    """(width, count) standard normal numbers, always the same: normals of sign hashes."""
    return normal(0, 0, torch.arange(width)[:, None], torch.arange(count)).float()
