"""Batch norm over the global batch, on any backend (``nn.SyncBatchNorm`` needs GPUs).

Shapes: S candidates of this rank, D features.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose statistics are those of all ranks' rows together.

    Ranks may hold unequal numbers of rows. Outside training, and without a process group, it is
    the plain module.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(S, D) -> (S, D)."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        # float64: sums of squares lose the variance of features far from zero in float32
        x64 = x.double()
        sums = torch.cat([x64.sum(0), x64.square().sum(0), x64.new_tensor([len(x)])])
        sums = _SumOverRanks.apply(sums)
        count = sums[-1]
        mean, mean_square = (sums[:-1] / count).chunk(2)
        variance = (mean_square - mean.square()).clamp(min=0)
        self._update_running(mean.detach(), variance.detach(), count.detach())
        scale = self.weight * (variance + self.eps).rsqrt().to(x.dtype)
        return (x - mean.to(x.dtype)) * scale + self.bias

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce that is differentiable: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def use_global_batch_norm(module: nn.Module) -> None:
    """Turns every ``nn.BatchNorm1d`` inside ``module`` into a :class:`GlobalBatchNorm1d`, in place;
    parameters, buffers and their names stay.
    """
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            child.__class__ = GlobalBatchNorm1d
