r"""What do two bytes in place of four change: logits, gradients, and is any of them not a number?

The same batches go forward and backward twice, in float32 and under ``torch.autocast`` to another
type, whose matrix products then have that type; tables and sums keep theirs. Nothing is updated.

Shapes: T batches, S candidates of all of them on this rank, P dense parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batch import RankingBatch
from modules.ranker import RankerOutput

Step = Callable[[RankingBatch], tuple[RankerOutput, Tensor]]
"""Forward pass of a batch: what the model says, and the loss, with gradient."""


def compare_precision(
    model: nn.Module,
    batches: Iterable[RankingBatch],
    step: Step,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Float32 beside ``dtype``. Collective where the model is.

    * ``not_finite_logits``, ``not_finite_gradients``: how many of ``logits`` and ``gradients``
      numbers, those of all batches together, are NaN or infinite.
    * ``gradient_norm``: of all dense parameters' gradients together, for each batch. Gradients of
      tables are not in it: their kernels use them up within the backward pass.
    * ``logit_difference``: mean distance of a logit from float32's. ``gradient_cosine``: of the
      gradient with float32's, mean over batches.

    Args:
        model: whose gradients are looked at, and cleared.
        batches: on their device.
        step: a fused optimizer of tables acts in its backward pass, so the learning rate of tables
            has to be 0.
        dtype: the other type.
    """
    exact, other = [], []
    for batch in batches:
        exact.append(_look(model, batch, step, None))
        other.append(_look(model, batch, step, dtype))
    of_exact, of_other = (_joined(seen) for seen in (exact, other))
    cosines = torch.cosine_similarity(of_exact[1], of_other[1], dim=1)
    return {
        "float32": _counts(*of_exact),
        str(dtype).removeprefix("torch."): {
            **_counts(*of_other),
            "logit_difference": _mean((of_other[0] - of_exact[0]).abs()),
            "gradient_cosine": float(cosines.mean()),
        },
    }


def _look(
    model: nn.Module, batch: RankingBatch, step: Step, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """(S,) logits and (P,) gradients of a batch."""
    model.zero_grad()
    with torch.autocast(batch.labels.device.type, dtype, enabled=dtype is not None):
        output, loss = step(batch)
    loss.backward()  # in the types of the forward pass
    gradients = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return output.logits.detach().double(), torch.cat(gradients)


def _joined(seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(S,) logits and (T, P) gradients."""
    logits, gradients = zip(*seen, strict=True)
    return torch.cat(logits), torch.stack(gradients)


def _counts(logits: Tensor, gradients_TP: Tensor) -> dict[str, Any]:
    """Logits of all ranks; gradients are the same on each."""
    of_logits = torch.stack([torch.tensor(logits.numel()), (~logits.isfinite()).sum().cpu()])
    of_logits = of_logits.to(logits.device)
    dist.all_reduce(of_logits)
    return {
        "logits": int(of_logits[0]),
        "not_finite_logits": int(of_logits[1]),
        "gradients": gradients_TP.numel(),
        "not_finite_gradients": int((~gradients_TP.isfinite()).sum()),
        "gradient_norm": gradients_TP.norm(dim=1).tolist(),
    }


def _mean(values: Tensor) -> float:
    """Over all ranks."""
    sums = torch.stack([values.sum(), values.new_tensor(values.numel())])
    dist.all_reduce(sums)
    return float(sums[0] / sums[1])
