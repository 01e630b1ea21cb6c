"""Batch norm over the global batch, on any backend (``nn.SyncBatchNorm`` needs GPUs).

Shapes: S candidates of this rank, D features.
"""

from __future__ import annotations

from collections.abc import Iterable

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
        sums = torch.cat([x64.sum(0), x64.square().sum(0), x64.new_full((1,), len(x))])
        if dist.get_world_size() > 1:
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
        self.num_batches_tracked.add_(1)
        # as in torch: no momentum means the average of all batches since the last reset
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


@torch.no_grad()
def refresh_statistics(module: nn.Module, forward_passes: Iterable[object]) -> None:
    """Replaces the running statistics by the averages over ``forward_passes``, each of which runs
    ``module`` on a batch when it is asked for ("precise" batch norm, Wu and Johnson 2021).

    Running averages lag behind tables that move. Worst are features that never vary, such as the
    candidate's recency: training removes them exactly, but in evaluation what is left of a lagging
    mean is divided by the root of epsilon. Training itself does not use these statistics.
    """
    norms = [child for child in module.modules() if isinstance(child, GlobalBatchNorm1d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    was_training = module.training
    module.train()
    for _ in forward_passes:
        pass
    module.train(was_training)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value


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
