"""Small requests, packed as the ranker takes them, and rankers that compute in float64."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor

from modules.loss import Losses, ranking_losses, regularized_parameters
from modules.ranker import LifelongRanker, RankerOutput
from modules.ranker_config import RankerConfig
from modules.tables import FieldConfig

FIELDS = (
    # semantic and other fields mixed: the ranker has to sort them
    FieldConfig(name="item", num_embeddings=40, attention_dim=3, representation_dim=5),
    FieldConfig(
        name="recency", num_embeddings=60, attention_dim=4, representation_dim=2, semantic=False
    ),
    FieldConfig(name="category", num_embeddings=7, attention_dim=2, representation_dim=4),
    FieldConfig(
        name="action", num_embeddings=3, attention_dim=1, representation_dim=3, semantic=False
    ),
)
"""No two widths of a side are equal, and no field has the same on both sides."""

TABLES = {
    # key of an event, query of a candidate, value of an event, target of a candidate
    "decoupled": ("attention", "attention", "representation", "representation"),
    "shared": ("shared", "shared", "shared", "shared"),
    "projected": ("shared", "shared", "shared", "shared"),
    "three": ("attention_event", "attention_candidate", "representation", "representation"),
    "four": (
        "attention_event",
        "attention_candidate",
        "representation_event",
        "representation_candidate",
    ),
}
"""Which table serves each role, by ``sharing``."""

TOP_K = 4
OTHERS = 3
LENGTHS = (0, 5, 1, 40, TOP_K - 1, TOP_K, TOP_K + 1, 0, 23)
"""Histories: none, one event, around K, K + 1 twice (one other, fewer than M), much longer."""


@dataclass(frozen=True)
class Request:
    """A history and its candidates, each event or candidate a mapping from field to id."""

    number: int
    events: list[dict[str, int]]
    candidates: list[dict[str, int]]
    labels: list[float]


def make_requests(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Request]:
    """Requests of 1 to 6 candidates; the candidates come back often in the histories."""
    draw = random.Random(seed)

    def make(number: int, length: int) -> Request:
        events = [
            {
                "item": draw.randrange(40),
                "category": draw.randrange(7),
                "recency": length - position,
                "action": draw.randrange(3),
            }
            for position in range(length)
        ]
        candidates = [
            {"item": draw.randrange(40), "category": draw.randrange(7), "recency": 0, "action": 0}
            for _ in range(number % 6 + 1)
        ]
        labels = [float(draw.randrange(2)) for _ in candidates]
        return Request(1000 + 7 * number, events, candidates, labels)

    return [make(number, length) for number, length in enumerate(lengths)]


def pack(requests: list[Request]) -> dict[str, Any]:
    """The arguments of a ranker's forward."""
    counts = [len(request.candidates) for request in requests]
    lengths = [len(request.events) for request in requests]
    return {
        "history": _keyed([event for r in requests for event in r.events], lengths),
        "candidates": _keyed([c for r in requests for c in r.candidates], [1] * sum(counts)),
        "request_of": torch.arange(len(requests)).repeat_interleave(_whole(counts)),
        "request_ids": _whole([request.number for request in requests]),
        "history_lengths": _whole(lengths),
        "candidate_counts": _whole(counts),
    }


def labels_of(requests: list[Request], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([label for r in requests for label in r.labels], dtype=dtype)


def _keyed(ids: list[dict[str, int]], lengths: list[int]) -> KeyedJaggedTensor:
    keys = [field.name for field in FIELDS]
    return KeyedJaggedTensor(
        keys=keys,
        values=_whole([one[key] for key in keys for one in ids]),
        lengths=_whole(lengths * len(keys)),
    )


def _whole(numbers: list[int]) -> Tensor:
    """int64 also when empty."""
    return torch.tensor(numbers, dtype=torch.int64)


def fields_for(sharing: str) -> tuple[FieldConfig, ...]:
    """Shared tables have one width per field; the fields still differ from each other."""
    if sharing != "shared":
        return FIELDS
    return tuple(dataclasses.replace(f, representation_dim=f.attention_dim) for f in FIELDS)


def make_config(**changes: Any) -> RankerConfig:
    small = RankerConfig(
        top_k=TOP_K,
        auxiliary_others=OTHERS,
        hidden=(6, 5),
        auxiliary_hidden=(4,),
        temperature=3.0,
    )
    return dataclasses.replace(small, **changes)


def make_ranker(
    config: RankerConfig,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    *,
    sums_rows: bool = False,
) -> LifelongRanker:
    """A ranker whose every parameter and running statistic is far from special values."""
    ranker = LifelongRanker(config, fields_for(config.sharing), sums_rows=sums_rows)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*ranker.named_parameters(), *ranker.named_buffers()]:
            if name.endswith(("running_var", "temperature")):
                tensor.uniform_(1.0, 3.0, generator=draws)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.8, generator=draws)
    return with_float64_tables(ranker.double()) if dtype == torch.float64 else ranker


def with_float64_tables(ranker: LifelongRanker) -> LifelongRanker:
    """TorchRec's unsharded collection rounds its rows to float32; this one does not."""
    for name in ranker.tables.roles:
        setattr(ranker.tables, name, Float64Bags(ranker.tables.get_submodule(name)))
    return ranker


class Float64Bags(nn.Module):
    """An EmbeddingBagCollection, weighted or not, in the precision of its tables."""

    def __init__(self, bags: EmbeddingBagCollection) -> None:
        super().__init__()
        self.embedding_bags = bags.embedding_bags
        self.feature_of = {c.name: c.feature_names[0] for c in bags.embedding_bag_configs()}
        self.weighted = bags.is_weighted()

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        sums = {}
        for name, table in self.embedding_bags.items():
            ids = features[self.feature_of[name]]
            rows = table.weight[ids.values()]
            if self.weighted:
                rows = rows * ids.weights()[:, None]
            bag = torch.arange(features.stride()).repeat_interleave(ids.lengths())
            zeros = rows.new_zeros(features.stride(), rows.shape[1])
            sums[self.feature_of[name]] = zeros.index_add(0, bag, rows)
        widths = [rows.shape[1] for rows in sums.values()]
        return KeyedTensor(list(sums), widths, torch.cat(list(sums.values()), dim=1))


def train_step(
    ranker: LifelongRanker,
    requests: list[Request],
    *,
    seed: int = 0,
    auxiliary_weight: float = 1.0,
    l2: float = 0.01,
) -> tuple[RankerOutput, Losses, Mapping[str, Tensor]]:
    """Output, losses and the gradient of every parameter, zeros where none came."""
    ranker.zero_grad()
    output = ranker(**pack(requests), seed=seed)
    labels = labels_of(requests, output.logits.dtype)
    losses = ranking_losses(
        output,
        labels,
        regularized_parameters(ranker),
        num_candidates=len(labels),
        auxiliary_weight=auxiliary_weight,
        l2=l2,
    )
    losses.total().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in ranker.named_parameters()
    }
    return output, losses, gradients
