"""A step of one crossing network: forward and backward, to the fields too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.crossing.network import make_crossing
from modules.crossing.presets import PRESETS
from trainer.steps.step import Step


@dataclass(frozen=True, kw_only=True)
class NetworkStep(Step):
    """What crossing costs, without tables and optimizers."""

    network: str = "secn_b"
    """Of those that ``twofold train --help`` names as networks between fields."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in PRESETS:
            raise ValueError(f"network is one of {', '.join(PRESETS)}; got {self.network!r}.")

    def small(self) -> NetworkStep:
        """See :meth:`trainer.steps.step.Step.small`."""
        return dataclasses.replace(self, batch=2, fields=min(self.fields, 4))

    def draw(self) -> Tensor:
        """(S, F, D) field vectors."""
        return torch.randn(self.batch, self.fields, self.width, requires_grad=True)

    def make(self) -> Callable[[Tensor], None]:
        """The network."""
        network = make_crossing(PRESETS[self.network](), self.fields, self.width)
        first_order = torch.zeros(self.batch)

        def step(vectors: Tensor) -> None:
            network(vectors, first_order).sum().backward()
            network.zero_grad()
            vectors.grad = None

        return step
