r"""The ranker once more, from the formulas, one candidate and one event at a time, in float64.

It shares nothing with ``modules/`` but the names of the parameters and the hash that gives a
request its random start. For a candidate v with history events 1..n:

* score  s_j = <q_s, k_js> / sqrt(d_s) + <q_t, k_jt> / sqrt(d_t), each a sum over the semantic and
  the other fields; cosine: temperature * cos(q_s, k_js) in place of the first term
* top    the min(K, n) best
* h      sum over top of softmax(s)_j * r_j; zeros without history
* x      [r_v; h] and, target-aware, r_v * h
* head   batch norm, then (linear, PReLU) for each hidden layer, then two logits (click, no click)
* aux    a second head on the same x with h over all events (full), or over the top and M others,
         whose scores get + ln((n - K) / M) (sampled)
* loss   mean over candidates of -log softmax(logits)[label], of both heads, plus L2 of both heads
         without their biases
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from modules.random import uniform
from modules.ranker import RankerConfig
from modules.tables import FieldConfig
from tests.modules.cases import Request

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1


class Answer(NamedTuple):
    """What the formulas say about all candidates, in order."""

    logits: Tensor
    auxiliary_logits: Tensor | None
    main: Tensor
    auxiliary: Tensor
    l2: Tensor
    recency: list[list[int]]
    """Rank from the end of the chosen events of each candidate, best first."""
    weights: list[list[float]]


class Reference:
    """Holds float64 copies of a ranker's parameters, to be differentiated."""

    def __init__(
        self,
        config: RankerConfig,
        fields: tuple[FieldConfig, ...],
        state: dict[str, Tensor],
        training: bool,
    ) -> None:
        self.config, self.training = config, training
        self.semantic = [f for f in fields if f.semantic]
        self.other = [f for f in fields if not f.semantic]
        self.statistics: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        for name, tensor in state.items():
            is_statistic = "running_" in name or "num_batches" in name
            copies = self.statistics if is_statistic else self.parameters
            copies[name] = tensor.detach().double().clone().requires_grad_(not is_statistic)

    def answer(self, requests: list[Request], seed: int = 0, l2: float = 0.01) -> Answer:
        """Everything about the batch; ``backward`` on the losses fills ``gradients``."""
        inputs, auxiliary_inputs, recency, weights = [], [], [], []
        for request in requests:
            for rank, candidate in enumerate(request.candidates):
                scores = [self.score(candidate, event) for event in request.events]
                top = sorted(range(len(scores)), key=lambda j: -scores[j].item())
                top = top[: self.config.top_k]
                interest, weight = self.pool(request, top, [scores[j] for j in top])
                inputs.append(self.features(candidate, interest))
                recency.append([len(scores) - j for j in top])
                weights.append([w.item() for w in weight])
                if self.has_auxiliary():
                    start = uniform(seed, request.number, rank).item()
                    pooled = self.auxiliary_interest(request, scores, top, start)
                    auxiliary_inputs.append(self.features(candidate, pooled))
        labels = [label for request in requests for label in request.labels]
        outputs = self.head("head", inputs)
        main = cross_entropy(outputs, labels)
        auxiliary, auxiliary_logits = torch.zeros((), dtype=torch.float64), None
        if self.has_auxiliary():
            auxiliary_outputs = self.head("auxiliary_head", auxiliary_inputs)
            auxiliary = cross_entropy(auxiliary_outputs, labels)
            auxiliary_logits = log_odds(auxiliary_outputs)
        return Answer(
            log_odds(outputs), auxiliary_logits, main, auxiliary, l2 * self.l2(), recency, weights
        )

    def gradients(self) -> dict[str, Tensor]:
        """Of every parameter, zeros where none came."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self.parameters.items()
        }

    def has_auxiliary(self) -> bool:
        return self.training and self.config.auxiliary != "none"

    def row(self, side: str, field: FieldConfig, one: dict[str, int]) -> Tensor:
        table = side if self.config.sharing == "decoupled" else "shared"
        name = f"tables.{table}.embedding_bags.{table}_{field.name}.weight"
        return self.parameters[name][one[field.name]]

    def representation(self, one: dict[str, int]) -> Tensor:
        return torch.cat([self.row("representation", f, one) for f in self.semantic + self.other])

    def score(self, candidate: dict[str, int], event: dict[str, int]) -> Tensor:
        def dot(a: dict[str, int], b: dict[str, int], fields: list[FieldConfig]) -> Tensor:
            return sum(
                (self.row("attention", f, a) * self.row("attention", f, b)).sum() for f in fields
            )

        semantic = dot(candidate, event, self.semantic)
        if self.config.score == "cosine":
            norms = dot(candidate, candidate, self.semantic) * dot(event, event, self.semantic)
            semantic = self.parameters["score.temperature"][0] * semantic / norms.sqrt()
        else:
            semantic = semantic / math.sqrt(sum(f.attention_dim for f in self.semantic))
        width = sum(f.attention_dim for f in self.other)
        return semantic + dot(candidate, event, self.other) / math.sqrt(width)

    def pool(
        self, request: Request, positions: list[int], scores: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Softmax of ``scores``, and with it the sum of the representations of ``positions``."""
        exponentials = [score.exp() for score in scores]
        weights = [exponential / sum(exponentials) for exponential in exponentials]
        pooled = torch.zeros_like(self.representation(request.candidates[0]))
        for position, weight in zip(positions, weights, strict=True):
            pooled = pooled + weight * self.representation(request.events[position])
        return pooled, weights

    def auxiliary_interest(
        self, request: Request, scores: list[Tensor], top: list[int], start: float
    ) -> Tensor:
        if self.config.auxiliary == "full":
            return self.pool(request, list(range(len(scores))), scores)[0]
        rest = [j for j in range(len(scores)) if j not in top]
        others = systematic_sample(rest, self.config.auxiliary_others, start)
        correction = math.log(len(rest) / len(others)) if others else 0.0
        corrected = [scores[j] for j in top] + [scores[j] + correction for j in others]
        return self.pool(request, top + others, corrected)[0]

    def features(self, candidate: dict[str, int], interest: Tensor) -> Tensor:
        target = self.representation(candidate)
        parts = [target, interest]
        return torch.cat([*parts, target * interest] if self.config.target_aware else parts)

    def head(self, prefix: str, inputs: list[Tensor]) -> list[Tensor]:
        """(click, no click) for each input."""
        hidden = self.config.hidden if prefix == "head" else self.config.auxiliary_hidden
        rows = self.batch_norm(f"{prefix}.layers.0", inputs)
        for layer in range(1, 2 * len(hidden) + 1, 2):
            rows = [self.linear(f"{prefix}.layers.{layer}", row) for row in rows]
            slope = self.parameters[f"{prefix}.layers.{layer + 1}.weight"][0]
            rows = [torch.where(row > 0, row, slope * row) for row in rows]
        return [self.linear(f"{prefix}.layers.{2 * len(hidden) + 1}", row) for row in rows]

    def linear(self, name: str, row: Tensor) -> Tensor:
        return self.parameters[f"{name}.weight"] @ row + self.parameters[f"{name}.bias"]

    def batch_norm(self, name: str, rows: list[Tensor]) -> list[Tensor]:
        mean = self.statistics[f"{name}.running_mean"]
        variance = self.statistics[f"{name}.running_var"]
        if self.training:
            mean = sum(rows) / len(rows)
            squares = sum((row - mean) ** 2 for row in rows)
            variance = squares / len(rows)
            self.update_statistics(name, mean.detach(), squares.detach() / (len(rows) - 1))
        gain, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        deviation = (variance + BATCH_NORM_EPSILON).sqrt()
        return [gain * (row - mean) / deviation + bias for row in rows]

    def update_statistics(self, name: str, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Running averages: the old value keeps 0.9."""
        for statistic, new in (("running_mean", mean), ("running_var", unbiased_variance)):
            old = self.statistics[f"{name}.{statistic}"]
            self.statistics[f"{name}.{statistic}"] = old + BATCH_NORM_MOMENTUM * (new - old)
        self.statistics[f"{name}.num_batches_tracked"] += 1

    def l2(self) -> Tensor:
        return sum(
            (p**2).sum()
            for name, p in self.parameters.items()
            if name.startswith(("head.", "auxiliary_head.")) and "bias" not in name
        )


def systematic_sample(rest: list[int], wanted: int, start: float) -> list[int]:
    """Every (n / M)-th of ``rest``, from ``start`` intervals on."""
    count = min(wanted, len(rest))
    return [rest[math.floor((start + i) * len(rest) / count)] for i in range(count)]


def cross_entropy(outputs: list[Tensor], labels: list[float]) -> Tensor:
    """Mean of -log p(label); output 0 is the click."""
    terms = [
        (click.exp() + no_click.exp()).log() - (click if label == 1 else no_click)
        for (click, no_click), label in zip(outputs, labels, strict=True)
    ]
    return sum(terms) / len(terms)


def log_odds(outputs: list[Tensor]) -> Tensor:
    return torch.stack([click - no_click for click, no_click in outputs])
