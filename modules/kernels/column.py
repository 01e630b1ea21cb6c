"""What search kernels read keys from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Column(NamedTuple):
    """A part of an event's key: the row of one table."""

    table: Tensor
    """(num_embeddings, W) float32, bfloat16 or float16; or uint8, (num_embeddings, W + 8): FBGEMM's
    8-bit rows, which end with their scale and their least value as float32. Rows are contiguous."""
    ids: Tensor
    """(N,) int64, each below num_embeddings."""

    @property
    def width(self) -> int:
        """W."""
        return self.table.shape[1] - 8 * (self.table.dtype == torch.uint8)
