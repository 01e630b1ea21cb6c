"""Attention by hash collisions. Shapes: S candidates, N events, G groups of T bits, R
representation width; in a block B requests, L events, C candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.attention import pool_blocks
from modules.jagged import Block
from modules.random import hyperplanes


class HashCollisions(nn.Module):
    r"""SDIM (https://arxiv.org/abs/2205.10249): an event counts in each group of hashes where all
    its bits are the candidate's, so that its expected weight is :math:`(1 - \theta / \pi)^T`.

    .. math:: h = \frac{1}{G} \sum_g \frac{h_g}{\lVert h_g \rVert}, \quad
              h_g = \sum_j [code_g(j) = code_g(v)]\, r_j

    The sums of all buckets do not depend on the candidate: they are made once for a history. No
    gradient passes through the hashes, only through the values.
    """

    def __init__(self, width: int, groups: int, bits: int) -> None:
        super().__init__()
        self.groups, self.bits, self.buckets = groups, bits, 2**bits
        self.register_buffer("planes", hyperplanes(width, groups * bits))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, blocks: list[Block]) -> Tensor:
        """(S, A) and (N, A) rows to be hashed, (N, R) values -> (S, R), zeros without history."""

        def pool(code_BCG: Tensor, code_BLG: Tensor, v_BLR: Tensor, mask_BL: Tensor) -> Tensor:
            in_bucket_BLX = v_BLR.new_zeros(*code_BLG.shape[:2], self.groups * self.buckets)
            ones = mask_BL[:, :, None].to(v_BLR.dtype).expand(-1, -1, self.groups)
            in_bucket_BLX.scatter_(2, code_BLG, ones)
            sums_BXR = in_bucket_BLX.mT @ v_BLR
            batch = torch.arange(len(sums_BXR), device=sums_BXR.device)
            sums_BCGR = sums_BXR[batch[:, None, None], code_BCG]
            return F.normalize(sums_BCGR, dim=-1, eps=1e-12).mean(2)

        return pool_blocks(pool, self._codes(queries), self._codes(keys), values, blocks)

    @torch.no_grad()
    def _codes(self, rows: Tensor) -> Tensor:
        """(n, A) -> (n, G) int64 number of its bucket among all G * 2^T."""
        bits = (rows @ self.planes.to(rows) > 0).unflatten(1, (self.groups, -1))
        place = 2 ** torch.arange(self.bits, device=rows.device)
        first = torch.arange(self.groups, device=rows.device) * self.buckets
        return (bits * place).sum(2) + first
