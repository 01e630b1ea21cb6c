"""A step that can be measured: what a batch is, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Batch = Any
"""What a step takes: tensors, drawn before the clock runs."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Sizes that every measured step has."""

    batch: int = 4096
    """Rows of a batch: candidates (S)."""
    fields: int = 39
    """Fields of a row (F)."""
    width: int = 16
    """Width of a field's vector (D)."""
    repeats: int = 5
    """Steps that are measured, after three that are not; the median counts."""
    threads: int = 1
    """Of torch. With one the clock is the thread's own CPU time, with more it is the wall's."""
    seed: int = 1
    """Of batches and weights."""

    def __post_init__(self) -> None:
        for name in ("batch", "fields", "width", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def small(self) -> Step:
        """The same at a size that costs nothing, to load what the libraries load at first use."""
        raise NotImplementedError

    def draw(self) -> Batch:
        """A batch."""
        raise NotImplementedError

    def make(self) -> Callable[[Batch], None]:
        """What does a step: forward, backward and, where there is an optimizer, its update. It
        keeps no gradient.
        """
        raise NotImplementedError
