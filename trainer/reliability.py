"""How a run survives what clusters do to it. Nothing here changes a result."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Checkpoints, restarts and lost ranks (docs/reliability.md)."""

    checkpoint_every: int = 0
    """Steps between two checkpoints, beside the one of each evaluation; 0: those alone."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, and the best one up to each of them."""
    checkpoints: str = ""
    """fsspec URL of a folder for the checkpoints of this run alone, e.g. s3://bucket/runs/mine,
    with the package that fsspec wants for it. Empty: RUN/checkpoints."""
    checkpoint_in_background: bool = True
    """Training goes on while a copy of the state is written: takes as much memory again as tables
    and optimizer states. Otherwise it waits."""
    peer_timeout: float = 600.0
    """Seconds after which a rank that waits for another gives up."""
    max_attempts_at_a_step: int = 3
    """Crashes in a row at the same step after which --resume refuses; 0: never."""

    def __post_init__(self) -> None:
        for name, least in (
            ("checkpoint_every", 0), ("keep_checkpoints", 1), ("max_attempts_at_a_step", 0),
        ):  # fmt: skip
            if not least <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"{name} must be a number from {least} up, below 2**31, got "
                    f"{getattr(self, name)}."
                )
        if not 0 < self.peer_timeout < math.inf:
            raise ValueError(f"peer_timeout must be positive, got {self.peer_timeout}.")
        if self.checkpoints and "://" not in self.checkpoints:
            raise ValueError(
                f"checkpoints takes a URL such as s3://bucket/folder or file:///folder, got "
                f"{self.checkpoints!r}. For a local folder give --out RUN: RUN/checkpoints."
            )
