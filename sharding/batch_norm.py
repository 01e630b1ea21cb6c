"""Batch norm over the global batch, on any backend (``nn.SyncBatchNorm`` needs GPUs).

Shapes: S candidates of this rank, D features.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose statistics are those of all ranks' rows together.

    Ranks may hold unequal numbers of rows. Outside training, and without a process group, it is
    the plain module.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(S, D) -> (S, D)."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        normalized, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        self._update_running(mean, variance, count)
        return normalized

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


class _Normalize(torch.autograd.Function):
    r"""With the mean and the standard deviation of all N rows,
    :math:`\hat x = (x - \mu) / \sigma`, :math:`y = w \hat x + b` and

    .. math:: \frac{\partial L}{\partial x} = \frac{w}{\sigma} \Big(g
        - \frac 1 N \sum g - \hat x\, \frac 1 N \sum g \hat x \Big)

    in two passes, where autograd's would be a dozen. Every rank's output depends on every rank's
    input: both kinds of sums are over all ranks. Those of w and b are this rank's.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # float64: sums of squares lose the variance of features far from zero in float32
        x64 = x.double()
        sums = torch.cat([x64.sum(0), x64.square().sum(0), x64.new_full((1,), len(x))])
        if dist.get_world_size() > 1:
            dist.all_reduce(sums)
        count = sums[-1]
        mean, mean_square = (sums[:-1] / count).chunk(2)
        variance = (mean_square - mean.square()).clamp(min=0)
        inverse = (variance + eps).rsqrt().to(x.dtype)
        standard = (x - mean.to(x.dtype)).mul_(inverse)
        ctx.save_for_backward(standard, weight, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(bias, standard, weight), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        standard, weight, inverse, count = ctx.saved_tensors
        grad = grad.to(standard.dtype)
        along = grad * standard
        own = torch.stack([grad.sum(0), along.sum(0)])
        if not ctx.needs_input_grad[0]:  # numbers of the log: ranks have nothing to sum
            return None, own[1], own[0], None
        total = own.clone()
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        mean_grad, mean_along = (total / count.to(total.dtype)).unbind()
        of_x = (grad - mean_grad).addcmul_(standard, mean_along, value=-1).mul_(weight * inverse)
        return of_x, own[1], own[0], None


def use_global_batch_norm(module: nn.Module) -> None:
    """Turns every ``nn.BatchNorm1d`` inside ``module`` into a :class:`GlobalBatchNorm1d`, in place;
    parameters, buffers and their names stay.
    """
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            child.__class__ = GlobalBatchNorm1d
