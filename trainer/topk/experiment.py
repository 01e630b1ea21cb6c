"""Everything a top-K run depends on beside the data, and the models with their settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from modules.retrieval.config import (
    FactorsConfig,
    FrequentConfig,
    GCMCConfig,
    LightGCNConfig,
    ModelConfig,
    NGCFConfig,
    PopularConfig,
    SelfAttentionConfig,
)
from modules.retrieval.loss import Loss

Candidates = Literal["all", "new"]
M = TypeVar("M", bound=ModelConfig)


@dataclass(frozen=True, kw_only=True)
class TopKExperiment(Generic[M]):
    """Settings of one run; the command line overrides them."""

    model: M
    """The network."""
    candidates: Candidates = "new"
    """Which items are ranked for a user, and count as found: all of the catalogue, or those that
    the user did not buy in training."""
    loss: Loss = "bpr"
    """bpr: each purchase against one random item that the user did not buy. sampled_softmax:
    against the same random items for the whole batch."""
    negatives: int = 1024
    """Random items of a batch; of sampled_softmax."""
    batch_size: int = 4096
    """Purchases of a step; of self_attention, windows of histories."""
    epochs: int = 100
    """Passes over the training purchases at most."""
    evaluate_every: int = 1
    """Epochs from one validation to the next."""
    patience: int = 3
    """Validations without a better NDCG@20 after which training ends."""
    learning_rate: float = 0.001
    """Of Adam; tables with sparse gradients have the Adam that steps the looked-up rows alone."""
    l2: float = 0.0
    """Weight of half the squares of the rows that a batch looked up, per purchase."""
    users_chunk: int = 256
    """Users that are ranked at once: the scores of the whole catalogue for them are in memory."""
    bootstrap: int = 1000
    """Resamples of the users behind an interval."""
    seed: int = 1
    """Of starts, order and random items."""

    def __post_init__(self) -> None:
        for name in ("negatives", "batch_size", "epochs", "evaluate_every", "patience",
                     "users_chunk"):  # fmt: skip
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"{name} must be at least 1 and below 2**31, got {getattr(self, name)}."
                )
        for name in ("bootstrap", "seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} must be from 0 to below 2**31.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.l2 < math.inf:
            raise ValueError(f"l2 must be a number from 0 up, got {self.l2}.")


def popular() -> TopKExperiment[PopularConfig]:
    """The most bought items of the training period, the same for everyone: the floor."""
    return TopKExperiment(model=PopularConfig())


def frequent() -> TopKExperiment[FrequentConfig]:
    """What each user bought most often, then the most bought: the floor where all are ranked."""
    return TopKExperiment(model=FrequentConfig())


def mf() -> TopKExperiment[FactorsConfig]:
    """Matrix factorisation: a row for each user and each item, sparse gradients."""
    return TopKExperiment(model=FactorsConfig(), learning_rate=0.005, l2=1e-3)


def lightgcn() -> TopKExperiment[LightGCNConfig]:
    """LightGCN: rows spread along the graph of purchases, nothing else (PyTorch Geometric)."""
    return TopKExperiment(
        model=LightGCNConfig(), batch_size=65536, learning_rate=0.02, l2=1e-4, evaluate_every=3
    )


def ngcf() -> TopKExperiment[NGCFConfig]:
    """NGCF: as LightGCN, with linear maps and products of neighbours in each layer."""
    return TopKExperiment(
        model=NGCFConfig(), batch_size=65536, learning_rate=0.01, l2=1e-4, evaluate_every=3
    )


def gcmc() -> TopKExperiment[GCMCConfig]:
    """GC-MC: one graph convolution and a bilinear decoder."""
    return TopKExperiment(
        model=GCMCConfig(), batch_size=65536, learning_rate=0.02, l2=1e-4, evaluate_every=3
    )


def self_attention() -> TopKExperiment[SelfAttentionConfig]:
    """Causal self-attention over the user's latest events, scored against the item table."""
    return TopKExperiment(model=SelfAttentionConfig(), batch_size=64, learning_rate=0.002, l2=1e-3)


MODELS: dict[str, Callable[[], TopKExperiment]] = {
    make.__name__: make for make in (popular, frequent, mf, lightgcn, ngcf, gcmc, self_attention)
}
"""By the name that the command line knows."""
