"""How far attention spreads, against loops by hand and against what is known."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from analysis.attention_spread import AttentionSpread
from data.batch import RankingBatch
from modules.crossing import HistoryConfig
from modules.ranker import LifelongRanker
from modules.ranker_config import RankerConfig
from modules.tables import FieldConfig
from tests.analysis.small_batches import batch_of
from tests.ranks import run_ranks

ITEMS = {item: item % 3 for item in range(1, 12)}
REQUESTS = [([5, 7, 5, 9, 1], [5, 9]), ([7, 2], [7]), ([], [5]), ([6], [6, 1]), ([3] * 9, [3])]
FIELDS = tuple(
    FieldConfig(
        name=name, num_embeddings=rows, attention_dim=4, representation_dim=4, semantic=semantic
    )
    for name, rows, semantic in (("item", 12, True), ("category", 4, True), ("recency", 16, False))
)


def make(**settings: object) -> LifelongRanker:
    torch.manual_seed(3)
    config = RankerConfig(**{"auxiliary": "none"} | settings)
    ranker = LifelongRanker(config, FIELDS).eval()
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter)
    return ranker


def score(batch: RankingBatch, ranker: LifelongRanker) -> None:
    ranker(
        history=batch.history,
        candidates=batch.candidates,
        request_of=batch.request_of,
        request_ids=batch.request_ids,
        history_lengths=batch.history_lengths,
        candidate_counts=batch.candidate_counts,
    )


def spread_of(ranker: LifelongRanker, requests: list[tuple[list[int], list[int]]]) -> dict:
    def measure(rank: int, world_size: int) -> dict:
        spread, batch = AttentionSpread(ranker, torch.device("cpu")), batch_of(requests, ITEMS)
        score(batch, ranker)
        spread.update(SimpleNamespace(), batch)
        return spread.to_json()

    return run_ranks(measure, 1)[0]


def by_hand(weights: list[Tensor]) -> tuple[float, dict[int, list[float]]]:
    """Mean of H / ln n, and all of them by the power of two of n."""
    values = defaultdict(list)
    for of_query in weights:
        n = len(of_query)
        if n > 1:
            entropy = -sum(w * math.log(w) for w in of_query.tolist() if w > 0)
            values[2 ** int(math.log2(n))].append(entropy / math.log(n))
    every = [value for of_length in values.values() for value in of_length]
    return sum(every) / len(every), values


def check(found: dict, weights: list[Tensor]) -> None:
    mean, values = by_hand(weights)
    assert found["spread"] == pytest.approx(mean, abs=1e-6)
    assert found["queries"] == sum(map(len, values.values()))
    for entry in found["by_length"]:
        of_length = values.pop(entry["events"])
        assert entry["queries"] == len(of_length)
        assert entry["spread"] == pytest.approx(sum(of_length) / len(of_length), abs=1e-6)
    assert not values


@pytest.mark.parametrize("search", ["exact", "all"])
def test_the_candidate_s_attention_is_that_of_a_loop(search: str) -> None:
    ranker = make(search=search, top_k=2)
    batch, weights = batch_of(REQUESTS, ITEMS), []
    keys, queries = ranker.tables.attend(
        *({f.name: of[f.name].values() for f in FIELDS} for of in (batch.history, batch.candidates))
    )
    keys, queries = ranker.score.key(keys), ranker.score.query(queries)
    first = 0
    candidate = 0
    for history, items in REQUESTS:
        rows = keys[first : first + len(history)]
        for _ in items:
            weights.append((rows @ queries[candidate]).softmax(0))
            candidate += 1
        first += len(history)
    found = spread_of(ranker, REQUESTS)
    check(found["target"], weights)
    assert found["self"] is None


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_that_of_a_loop(causal: bool) -> None:
    encoder = HistoryConfig(heads=2, hidden=5, places=8, causal=causal)
    ranker = make(search="all", pooling="self_attention", sharing="shared", encoder=encoder)
    batch = batch_of(REQUESTS, ITEMS)
    events, candidates = (
        {f.name: of[f.name].values() for f in FIELDS} for of in (batch.history, batch.candidates)
    )
    rows = ranker.tables(events, candidates)
    of_self, of_target, first, candidate = [], [], 0, 0
    for history, items in REQUESTS:
        n = len(history)
        values = rows.values[first : first + n]
        if n:
            newer = torch.arange(n - 1, -1, -1).clamp(max=7)
            projected = (values + ranker.encoder.place.weight[newer]) @ (
                ranker.encoder.in_projection.weight.T
            )
            q, k, _ = projected.split(12, dim=1)
            for head in (slice(0, 6), slice(6, 12)):
                for t in range(n):
                    seen = slice(t + 1 if causal else n)
                    of_self.append((k[seen, head] @ q[t, head] / 6**0.5).softmax(0))
            encoded = ranker.encoder.encode(values[None], torch.ones(1, n, dtype=torch.bool))[0]
        for _ in items:
            if n:
                of_target.append((encoded @ rows.targets[candidate] / 12**0.5).softmax(0))
            candidate += 1
        first += n
    found = spread_of(ranker, REQUESTS)
    check(found["self"], of_self)
    check(found["target"], of_target)


def test_equal_scores_spread_over_all_and_one_high_score_over_none() -> None:
    ranker = make(search="all")
    with torch.no_grad():
        for parameter in ranker.tables.parameters():
            parameter.zero_()
    assert spread_of(ranker, REQUESTS)["target"]["spread"] == pytest.approx(1)
    with torch.no_grad():
        for name, parameter in ranker.tables.named_parameters():
            if name.endswith("item.weight"):
                parameter[7].fill_(100)
    assert spread_of(ranker, [([7, 1, 2, 4, 1, 2], [7])])["target"]["spread"] < 0.01


def test_without_two_events_there_is_nothing_to_spread_over() -> None:
    assert spread_of(make(search="all"), [([], [5]), ([6], [6])])["target"] is None
