"""What is known of a request beside its history: categorical fields, numbers, first-order weights.

Shapes: R requests, S candidates, F categorical fields, N numbers, D width of a field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from modules.bags import Ids, ids_of, look_up, make_collection, one_each


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Which fields a request has, and how wide they are."""

    fields: tuple[tuple[str, int], ...] = ()
    """(name, num_embeddings) of each categorical field; id 0 is "unknown"."""
    numbers: tuple[str, ...] = ()
    """Names of the numeric fields."""
    number_columns: tuple[int, ...] = ()
    """Where they stand among the numbers of a batch; (): they are all of them, in this order."""
    width: int = 16
    """D, of every field."""
    init_std: float = 0.01
    """Standard deviation of the rows at the start."""

    def __len__(self) -> int:
        """F + N."""
        return len(self.fields) + len(self.numbers)


NO_CONTEXT = ContextConfig()


class ContextFields(nn.Module):
    """A row for each field of a request, and their linear term."""

    def __init__(
        self,
        config: ContextConfig,
        *,
        vectors: bool = True,
        first_order: bool = True,
        device: torch.device | None = None,
    ) -> None:
        """``device`` is that of the tables. Parameters that a head would not look at are not made:
        those of the rows without ``vectors``, of the linear term without ``first_order``.
        """
        super().__init__()
        self.width = config.width
        self.names = [name for name, _ in config.fields]
        self.init_std: dict[str, float] = {}
        self.context = self.first_order = self.numbers = None
        if vectors and config.fields:
            tables = {f"context_{name}": (name, size, config.width) for name, size in config.fields}
            self.context = make_collection(tables, device)
            self.init_std = dict.fromkeys(tables, config.init_std)
        if first_order and config.fields:
            self.first_order = FirstOrder(config.fields, "context", device)
            self.init_std |= self.first_order.init_std
        self.number_columns = [*config.number_columns] or slice(None)
        if config.numbers:
            self.numbers = Numbers(
                len(config.numbers), config.width, vectors=vectors, first_order=first_order
            )

    def forward(self, context: KeyedJaggedTensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Stride R, bags of one, and (R, N), NaN where missing -> (R, F + N, D), (R,)."""
        ids = ids_of(context, self.names)
        rows = [numbers.new_zeros(len(numbers), 0, self.width)]
        first_order = numbers.new_zeros(len(numbers))
        if self.context is not None:
            rows.append(look_up(self.context, one_each(ids)).unflatten(1, (len(ids), -1)))
        if self.first_order is not None:
            first_order = self.first_order(ids)
        if self.numbers is not None:
            vectors, weights = self.numbers(numbers[:, self.number_columns])
            rows.append(vectors)
            first_order = first_order + weights
        return torch.cat(rows, dim=1), first_order


class FirstOrder(nn.Module):
    """The linear term of a linear model: one weight for each id of each field.

    The weights have tables of their own. As further columns of the embedding rows they would save a
    lookup, but a row-wise optimizer scales a row by its whole gradient, and that of the linear
    weight, which is not multiplied by anything small, would hold the embedding back.
    """

    def __init__(
        self,
        fields: tuple[tuple[str, int], ...],
        prefix: str,
        device: torch.device | None = None,
    ) -> None:
        """``fields``: (name, num_embeddings) of each."""
        super().__init__()
        tables = {f"linear_{prefix}_{name}": (name, size, 1) for name, size in fields}
        self.weights = make_collection(tables, device)
        self.init_std = dict.fromkeys(tables, 0.0)

    def forward(self, ids: Ids) -> Tensor:
        """As many ids of each field, n -> (n,)."""
        return look_up(self.weights, one_each(ids)).sum(dim=1)


class Numbers(nn.Module):
    r"""A number times a vector of its field; a missing one has a vector of its own.

    .. math:: e_n = z_n v_n, \quad z = \mathrm{batchnorm}(\mathrm{sign}(x) \ln(1 + |x|))

    The logarithm takes the tails of counts and prices; what is missing counts as 0 in the
    statistics of the batch norm.
    """

    def __init__(self, count: int, width: int, *, vectors: bool, first_order: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(count)
        self.width = width
        self.has_vectors, self.has_weights = vectors, first_order
        if vectors:
            self.vectors = nn.Parameter(torch.empty(count, width).normal_(std=0.01))
            self.missing = nn.Parameter(torch.empty(count, width).normal_(std=0.01))
        if first_order:
            self.weights = nn.Parameter(torch.zeros(count))
            self.missing_weights = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, N) -> (R, N, D) vectors, (R, 0, D) where there are none, and the (R,) linear term."""
        known = x.isfinite()
        x = torch.where(known, x, 0.0)
        z = self.norm(x.sign() * x.abs().log1p())
        vectors, first_order = x.new_zeros(len(x), 0, self.width), x.new_zeros(len(x))
        if self.has_vectors:
            vectors = torch.where(known[..., None], z[..., None] * self.vectors, self.missing)
        if self.has_weights:
            first_order = torch.where(known, z * self.weights, self.missing_weights).sum(dim=1)
        return vectors, first_order
