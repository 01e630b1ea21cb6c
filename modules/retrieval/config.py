"""Settings of the models that rank a whole catalogue; free of the graph library."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PopularConfig:
    """Of :class:`~modules.retrieval.vectors.Popular`: nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class FrequentConfig:
    """Of :class:`~modules.retrieval.vectors.Frequent`: nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class FactorsConfig:
    """Of :class:`~modules.retrieval.vectors.MatrixFactorization`."""

    width: int = 64
    """Width of the rows of users and items."""
    init_std: float = 0.1
    """Standard deviation of the rows at the start."""

    def __post_init__(self) -> None:
        _check(self, "width")


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig:
    """Of :class:`~modules.retrieval.graph.LightGCN`."""

    width: int = 64
    """Width of the rows of users and items."""
    layers: int = 2
    """Hops of propagation; the mean over them, the rows themselves included, is the vector."""
    init_std: float = 0.1
    """Standard deviation of the rows at the start."""

    def __post_init__(self) -> None:
        _check(self, "width", "layers")


@dataclass(frozen=True, kw_only=True)
class NGCFConfig:
    """Of :class:`~modules.retrieval.graph.NGCF`."""

    width: int = 32
    """Width of the rows and of every layer; a vector is layers + 1 times as wide."""
    layers: int = 2
    """Hops of propagation."""
    dropout: float = 0.1
    """Share of the numbers of each layer's output that is dropped in training."""
    init_std: float = 0.1
    """Standard deviation of the rows at the start."""

    def __post_init__(self) -> None:
        _check(self, "width", "layers")


@dataclass(frozen=True, kw_only=True)
class GCMCConfig:
    """Of :class:`~modules.retrieval.graph.GCMC`."""

    width: int = 64
    """Width of the rows, of the hidden layer and of the vectors."""
    dropout: float = 0.1
    """Share of the nodes that send no messages in a step of training."""
    init_std: float = 0.1
    """Standard deviation of the rows at the start."""

    def __post_init__(self) -> None:
        _check(self, "width")


@dataclass(frozen=True, kw_only=True)
class SelfAttentionConfig:
    """Of :class:`~modules.retrieval.self_attention.SelfAttention`."""

    width: int = 64
    """Width of the item rows."""
    heads: int = 2
    """Heads of the self-attention; they divide the width."""
    hidden: int = 128
    """Width of the feed-forward layer."""
    history_length: int = 100
    """Most recent events that the encoder sees."""
    horizon: int = 50
    """How many of the purchases after a basket may be what is to be predicted there."""

    def __post_init__(self) -> None:
        _check(self, "width", "heads", "hidden", "history_length", "horizon")
        if self.width % self.heads:
            raise ValueError(
                f"heads={self.heads} do not divide the width {self.width}: "
                f"take a divisor of {self.width}."
            )


ModelConfig = (
    PopularConfig
    | FrequentConfig
    | FactorsConfig
    | LightGCNConfig
    | NGCFConfig
    | GCMCConfig
    | SelfAttentionConfig
)


def _check(config: ModelConfig, *counts: str) -> None:
    for name in counts:
        if not 1 <= getattr(config, name) < 2**31:
            raise ValueError(
                f"{name} must be at least 1 and below 2**31, got {getattr(config, name)}."
            )
    if not 0 <= getattr(config, "dropout", 0.0) < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {config.dropout}.")
    if not 0 < getattr(config, "init_std", 1.0) < math.inf:
        raise ValueError(f"init_std must be positive, got {config.init_std}.")
