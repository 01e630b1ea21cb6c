"""Tables narrower than a row of FBGEMM's."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor

from sharding.weighted_bags import with_weights

ROW_FLOATS = 4
"""TorchRec refuses tables whose width is no multiple of it, on CPUs too."""


class NarrowBags(nn.Module):
    """An EmbeddingBagCollection, some of whose tables are 1 or 2 wide.

    The collection within holds each of their rows 4 or 2 times side by side. The copies start alike
    and get the whole gradient each, so every one moves as the single row would, with any optimizer,
    and the first is as good as all.
    """

    def __init__(self, bags: EmbeddingBagCollection) -> None:
        super().__init__()
        configs = bags.embedding_bag_configs()
        self.widths = {table.name: table.embedding_dim for table in configs}
        """Of the rows as they are looked up."""
        self._width_of_key = {
            key: table.embedding_dim for table in configs for key in table.feature_names
        }
        self.bags = EmbeddingBagCollection(
            device=bags.device,
            is_weighted=bags.is_weighted(),
            tables=[
                EmbeddingBagConfig(
                    name=table.name,
                    embedding_dim=table.embedding_dim * copies(table.embedding_dim),
                    num_embeddings=table.num_embeddings,
                    feature_names=table.feature_names,
                )
                for table in configs
            ],
        )

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """As the collection that it stands for."""
        if (weights := ids.weights_or_none()) is not None and weights.requires_grad:
            ids = with_weights(ids, self._counted_once(ids, weights))
        held = self.bags(ids)
        keys = held.keys()
        widths = [self._width_of_key[key] for key in keys]
        return KeyedTensor(keys, widths, _FirstCopies.apply(held.values(), widths))

    def _counted_once(self, ids: KeyedJaggedTensor, weights: Tensor) -> Tensor:
        """The weights, whose gradient will be the sum over all copies of a row."""
        lengths = zip(ids.keys(), ids.length_per_key(), strict=True)
        share = torch.cat(
            [weights.new_full((n,), 1 / copies(self._width_of_key[key])) for key, n in lengths]
        )
        weights = weights.view_as(weights)
        weights.register_hook(lambda gradient: gradient * share)
        return weights


def copies(width: int) -> int:
    """How often a row is held so that it fills FBGEMM's: 1 where it does so without.

    >>> [copies(width) for width in (1, 2, 4, 6)]
    [4, 2, 1, 1]
    """
    return ROW_FLOATS // width if width in (1, 2) else 1


class _FirstCopies(torch.autograd.Function):
    """(n, sum of widths times copies) -> (n, sum of widths)."""

    @staticmethod
    def forward(ctx: Any, held: Tensor, widths: list[int]) -> Tensor:
        ctx.widths = widths
        ends = [*itertools.accumulate(width * copies(width) for width in widths)]
        return torch.cat(
            [
                held[:, end - width * copies(width) :][:, :width]
                for end, width in zip(ends, widths, strict=True)
            ],
            dim=1,
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        parts = gradient.split(ctx.widths, dim=1)
        return torch.cat([part.repeat(1, copies(part.shape[1])) for part in parts], dim=1), None


def hold_narrow_tables(model: nn.Module) -> None:
    """Puts NarrowBags in the place of every collection with a table 1 or 2 wide."""
    for path, bags in [*model.named_modules()]:
        if isinstance(bags, EmbeddingBagCollection) and any(
            copies(table.embedding_dim) > 1 for table in bags.embedding_bag_configs()
        ):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, NarrowBags(bags))


def widths_within(model: nn.Module) -> dict[str, int]:
    """Table -> width of a row, for the tables of all NarrowBags within a module."""
    found: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, NarrowBags):
            found |= module.widths
    return found
