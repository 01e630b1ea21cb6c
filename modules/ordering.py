"""The highest numbers of short rows, and rows in order.

On CPUs by NumPy, which sorts in vector registers where ``torch.topk`` and ``torch.sort`` compare
number by number: about five times faster for 20 of 200 to 1,000 (docs/performance.md).

Shapes: any leading dimensions, L numbers in a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LOW = 2**32 - 1


def highest(values: Tensor, k: int) -> Tensor:
    """(..., k) int64 places of the k highest of (..., L) numbers in their row, the highest first.

    Of equal ones the last comes first on CPUs in float32; elsewhere ``torch.topk`` leaves it open.
    -inf is lower than any other number. Without gradient.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.topk(k, dim=-1).indices
    length = values.shape[-1]
    # bits of a float32 are ordered like its value once those of negative ones are turned round
    bits = values.detach().contiguous().view(torch.int32)
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    # the place in the lower half goes along, so that values alone are sorted
    keys = ordered.long().bitwise_left_shift_(32).bitwise_or_(torch.arange(length)).numpy()
    keys.partition(length - k, axis=-1)
    best = np.sort(keys[..., length - k :], axis=-1)
    return torch.from_numpy(best).flip(-1).bitwise_and_(_LOW)


def ascending(values: Tensor) -> Tensor:
    """(..., L) numbers, each row in order. Without gradient."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
