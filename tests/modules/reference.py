r"""The ranker once more, from the formulas, one candidate and one event at a time, in float64.

It shares nothing with ``modules/`` but the names of the parameters and the hash that gives a
request its random start. For a candidate v with history events 1..n:

* rows   k_j, r_j of an event and q, v of a candidate from the tables that serve these roles;
  projected: each by a matrix for each field, or by one matrix and a bias
* score  s_j = <q_s, k_js> / sqrt(d_s) + <q_t, k_jt> / sqrt(d_t), each a sum over the semantic and
  the other fields; cosine: temperature * cos(q_s, k_js) in place of the first term; mlp: a network
  of [q; k; q - k; q * k], by the width; category_filled: without the category
* top    the min(K, n) best by the score, or by what the search goes by (see ``found``)
* h      sum over top of softmax(s)_j * r_j; zeros without history
* x      [r_v; h] and, target-aware, r_v * h; then the same of the h of the last W events
* head   batch norm, then (linear, PReLU) for each hidden layer, then two logits (click, no click)
* aux    a second head on the same x with h over all events (full), or over the top and M others,
         whose scores get + ln((n - K) / M) (sampled)
* loss   mean over candidates of -log softmax(logits)[label], of both heads, plus L2 of all but
         tables, biases and temperature
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from modules.random import uniform
from modules.ranker_config import RankerConfig
from modules.tables import FieldConfig
from tests.modules.cases import TABLES, Request
from tests.modules.clustering import recursive_k_means

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1
ROLES = ("keys", "queries", "values", "targets")
Row = dict[str, int]


class Seen(NamedTuple):
    """A history as one candidate sees it: events, or clusters of them."""

    keys: list[Tensor]
    values: list[Tensor]
    scores: list[Tensor]
    ages: list[int]


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
            is_statistic = "running_" in name or "num_batches" in name or "planes" in name
            copies = self.statistics if is_statistic else self.parameters
            copies[name] = tensor.detach().double().clone().requires_grad_(not is_statistic)

    def answer(self, requests: list[Request], seed: int = 0, l2: float = 0.01) -> Answer:
        """Everything about the batch; ``backward`` on the losses fills ``gradients``."""
        inputs, auxiliary_inputs, recency, weights = [], [], [], []
        for request in requests:
            for rank, candidate in enumerate(request.candidates):
                query, target = self.vector("queries", candidate), self.vector("targets", candidate)
                events = self.events(request, query)
                seen = self.clustered(events, query) if self.config.search == "clusters" else events
                top = self.found(request, candidate, query, seen)
                interest, weight = self.interest(query, seen, top)
                interests = [interest]
                if self.config.short_window:
                    last = list(range(len(events.ages)))[::-1][: self.config.short_window]
                    interests.append(self.pool(events, last)[0])
                inputs.append(self.features(target, interests))
                recency.append([seen.ages[j] for j in top])
                weights.append([w.item() for w in weight])
                if self.has_auxiliary():
                    start = uniform(seed, request.number, rank).item()
                    pooled = self.auxiliary_interest(query, seen, top, start)
                    auxiliary_inputs.append(self.features(target, [pooled]))
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

    def vector(self, role: str, one: Row) -> Tensor:
        """Row of an event or a candidate in one of the four roles, semantic fields first."""
        table = TABLES[self.config.sharing][ROLES.index(role)]
        rows = [
            self.parameters[f"tables.{table}.embedding_bags.{table}_{f.name}.weight"][one[f.name]]
            for f in self.semantic + self.other
        ]
        if self.config.sharing != "projected":
            return torch.cat(rows)
        maps = f"tables.projections.{role}"
        if self.config.projection == "event":
            weight, bias = (self.parameters[f"{maps}.0.{name}"] for name in ("weight", "bias"))
            return weight @ torch.cat(rows) + bias
        return torch.cat(
            [self.parameters[f"{maps}.{i}.weight"] @ row for i, row in enumerate(rows)]
        )

    def events(self, request: Request, query: Tensor) -> Seen:
        keys = [self.vector("keys", event) for event in request.events]
        return Seen(
            keys,
            [self.vector("values", event) for event in request.events],
            [self.score(query, key) for key in keys],
            list(range(len(keys), 0, -1)),
        )

    def clustered(self, events: Seen, query: Tensor) -> Seen:
        """Means of the members; ln n is added to the score of a cluster of n."""
        width = sum(f.attention_dim for f in self.semantic)
        clusters = recursive_k_means([key[:width].tolist() for key in events.keys])
        keys = [torch.stack([events.keys[j] for j in c]).mean(0) for c in clusters]
        return Seen(
            keys,
            [torch.stack([events.values[j] for j in c]).mean(0) for c in clusters],
            [self.score(query, k) + math.log(len(c)) for k, c in zip(keys, clusters, strict=True)],
            [round(sum(events.ages[j] for j in c) / len(c)) for c in clusters],
        )

    def scaled(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic and other part; the dot product of both parts of two vectors is their score."""
        fields = self.semantic + self.other
        parts = dict(
            zip(
                [f.name for f in fields],
                vector.split([f.attention_dim for f in fields]),
                strict=True,
            )
        )
        if self.config.search == "category_filled":
            del parts["category"]
        semantic = torch.cat([parts[f.name] for f in self.semantic if f.name in parts])
        other = torch.cat([parts[f.name] for f in self.other])
        if self.config.score == "cosine":
            semantic = semantic / semantic.norm() * self.parameters["score.temperature"][0].sqrt()
        else:
            semantic = semantic / len(semantic) ** 0.25
        return semantic, other / len(other) ** 0.25

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        if self.config.score == "mlp":
            hidden = self.linear("score.first", torch.cat([query, key, query - key, query * key]))
            slope = self.parameters["score.activation.weight"][0]
            hidden = torch.where(hidden > 0, hidden, slope * hidden)
            return self.linear("score.second", hidden)[0] / len(query)
        one, other = self.scaled(query), self.scaled(key)
        return (one[0] * other[0]).sum() + (one[1] * other[1]).sum()

    def found(self, request: Request, candidate: Row, query: Tensor, seen: Seen) -> list[int]:
        """Positions of the chosen events, best first."""
        positions, kind = range(len(seen.keys)), self.config.search
        hits = [event["category"] == candidate["category"] for event in request.events]
        if kind == "all":
            return []
        if kind == "category":
            positions = [j for j in positions if hits[j]]
        order = {
            "exact": lambda j: (seen.scores[j].item(),),
            "clusters": lambda j: (seen.scores[j].item(),),
            "recent": lambda j: (j,),
            "category": lambda j: (j,),
            "category_filled": lambda j: (hits[j], j),
            "simhash": lambda j: (self.agreement(query, seen.keys[j]), j),
            "soft": lambda j: (self.soft_score(query, seen.keys[j]).item(),),
        }[kind]
        return sorted(positions, key=order, reverse=True)[: self.config.top_k]

    def signs(self, vector: Tensor, planes: str) -> Tensor:
        semantic, other = self.scaled(vector)
        hashed = semantic if not self.config.hash_recency else torch.cat([semantic, other])
        return hashed.detach() @ self.statistics[planes] > 0

    def agreement(self, query: Tensor, key: Tensor) -> int:
        bits = zip(
            self.signs(query, "search.planes"), self.signs(key, "search.planes"), strict=True
        )
        return sum(int(a) == int(b) for a, b in bits)

    def soft_score(self, query: Tensor, key: Tensor) -> Tensor:
        of_query = self.parameters["search.query_map.weight"] @ query
        return (of_query * (self.parameters["search.key_map.weight"] @ key)).sum()

    def interest(self, query: Tensor, seen: Seen, top: list[int]) -> tuple[Tensor, list[Tensor]]:
        everything = list(range(len(seen.keys)))
        if self.config.search != "all":
            return self.pool(seen, top)
        if self.config.pooling == "attention":
            return self.pool(seen, everything)[0], []
        if self.config.pooling == "mean":
            return sum(seen.values, self.zeros()) / max(1, len(seen.values)), []
        return self.collided(query, seen), []

    def collided(self, query: Tensor, seen: Seen) -> Tensor:
        groups, bits = self.config.hash_groups, self.config.hash_group_bits
        interest, code = self.zeros(), self.signs(query, "collisions.planes")
        codes = [self.signs(key, "collisions.planes") for key in seen.keys]
        for g in range(groups):
            part = slice(g * bits, (g + 1) * bits)
            summed = self.zeros()
            for other, value in zip(codes, seen.values, strict=True):
                if torch.equal(other[part], code[part]):
                    summed = summed + value
            if summed.any():
                interest = interest + summed / summed.norm() / groups
        return interest

    def zeros(self) -> Tensor:
        width = sum(f.representation_dim for f in self.semantic + self.other)
        return torch.zeros(width, dtype=torch.float64)

    def pool(
        self, seen: Seen, positions: list[int], scores: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Softmax of ``scores``, and with it the sum of the values at ``positions``."""
        scores = [seen.scores[j] for j in positions] if scores is None else scores
        exponentials = [score.exp() for score in scores]
        weights = [exponential / sum(exponentials) for exponential in exponentials]
        pooled = self.zeros()
        for position, weight in zip(positions, weights, strict=True):
            pooled = pooled + weight * seen.values[position]
        return pooled, weights

    def auxiliary_interest(self, query: Tensor, seen: Seen, top: list[int], start: float) -> Tensor:
        everything = list(range(len(seen.keys)))
        if self.config.search in ("category", "category_filled"):
            return self.pool(seen, top)[0]
        if self.config.search == "soft":
            terms = (self.soft_score(query, seen.keys[j]) * seen.values[j] for j in everything)
            return sum(terms, self.zeros())
        if self.config.auxiliary == "full":
            return self.pool(seen, everything)[0]
        rest = [j for j in everything if j not in top]
        others = systematic_sample(rest, self.config.auxiliary_others, start)
        correction = math.log(len(rest) / len(others)) if others else 0.0
        corrected = [seen.scores[j] for j in top] + [seen.scores[j] + correction for j in others]
        return self.pool(seen, top + others, corrected)[0]

    def features(self, target: Tensor, interests: list[Tensor]) -> Tensor:
        parts = [target, *interests]
        if self.config.target_aware:
            parts += [target * interest for interest in interests]
        return torch.cat(parts)

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
            if "bias" not in name and "embedding_bags" not in name and name != "score.temperature"
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
