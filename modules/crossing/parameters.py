"""How weights start, and where the weights of field pairs go.

Shapes: F fields, P = F (F - 1) / 2 pairs i < j in the order of ``torch.combinations``.
"""

import torch
from torch import Tensor, nn


def xavier(*shape: int, fan_in: int, fan_out: int) -> nn.Parameter:
    """Normal with variance 2 / (fan_in + fan_out), for weights that hold many matrices."""
    return nn.Parameter(torch.randn(shape) * (2 / (fan_in + fan_out)) ** 0.5)


def start_linear(module: nn.Module) -> None:
    """Linear layers start as the published benchmarks' do: Xavier normal, biases at zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def num_pairs(fields: int) -> int:
    """Unordered pairs of different fields (P)."""
    return fields * (fields - 1) // 2


def pair_fields(fields: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two (P,) int64: i and j of every pair i < j, made where they are used."""
    first, second = torch.triu_indices(fields, fields, offset=1, device=device)
    return first, second


def strict_upper(weights: Tensor, fields: int) -> Tensor:
    """(P, ...) weights of pairs -> (F, F, ...) with zeros on and below the diagonal."""
    matrix = weights.new_zeros(fields, fields, *weights.shape[1:])
    return matrix.index_put(pair_fields(fields, weights.device), weights)
