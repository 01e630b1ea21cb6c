"""Search units, by the common suite, and the draw of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.jagged import first_rows
from modules.random import hyperplanes, uniform
from modules.score import MLPScore, Score
from modules.search import Histories, Selection, sample_others
from modules.search_units import (
    CategorySearch,
    ExactSearch,
    RecentSearch,
    Search,
    SimHashSearch,
    SoftSearch,
)
from modules.tables import FieldConfig
from tests.modules.conformance import Log, SearchConformance, SearchUnit, draw_log

WIDTH, BITS = 8, 24
FIELDS = (
    FieldConfig(name="item", num_embeddings=9, attention_dim=5),
    FieldConfig(name="recency", num_embeddings=9, attention_dim=3, semantic=False),
)
SCORES = {"dot": Score(FIELDS), "cosine": Score(FIELDS, "cosine", 3.0), "mlp": MLPScore(FIELDS)}
SOFT = SoftSearch(WIDTH)
with torch.no_grad():
    for weight in SOFT.parameters():
        weight.normal_(generator=torch.Generator().manual_seed(1))
SIMHASH = SimHashSearch(WIDTH, BITS)


def histories_of(log: Log) -> Histories:
    return Histories.of(
        {"category": log.event_category},
        {"category": log.candidate_category},
        torch.arange(len(log.counts)).repeat_interleave(log.counts),
        log.lengths,
        log.counts,
    )


def selecting(search: Search, score: str = "dot") -> Callable[[Log, int], Selection]:
    """The search as the suite calls it."""

    def select(log: Log, k: int) -> Selection:
        return search(
            histories_of(log), lambda: (log.keys.__getitem__, log.queries), SCORES[score], k
        )

    return select


def by_score(score: str) -> Callable[[Log], Tensor]:
    """Scores by hand."""

    def preference(log: Log) -> Tensor:
        (query,) = log.queries
        if score == "mlp":
            queries = query.expand_as(log.keys)
            inputs = [queries, log.keys, queries - log.keys, queries * log.keys]
            unit = SCORES["mlp"]
            return unit.second(unit.activation(unit.first(torch.cat(inputs, 1))))[:, 0] / WIDTH
        semantic, other = log.keys[:, :5] @ query[:5] / 5**0.5, log.keys[:, 5:] @ query[5:] / 3**0.5
        if score == "cosine":
            semantic = 3 * F.cosine_similarity(log.keys[:, :5], query[None, :5])
        return semantic + other

    return preference


def by_time(log: Log) -> Tensor:
    return torch.arange(len(log.keys)).float()


def by_category(log: Log) -> Tensor:
    hit = log.event_category == log.candidate_category
    return torch.where(hit, by_time(log), -torch.inf)


def by_category_then_time(log: Log) -> Tensor:
    return (log.event_category == log.candidate_category) * len(log.keys) + by_time(log)


def by_own_product(log: Log) -> Tensor:
    query = SOFT.query_map.weight @ log.queries[0]
    return ((SOFT.key_map.weight @ log.keys.T).T * query).sum(1)


def by_hamming_distance(log: Log) -> Tensor:
    """Of codes in Python's integers, with the latest of equals first."""
    scale = torch.tensor([5**-0.25] * 5 + [3**-0.25] * 3)

    def code(row: Tensor) -> int:
        signs = (row * scale) @ SIMHASH.planes > 0
        return sum(2**bit for bit, sign in enumerate(signs.tolist()) if sign)

    query = code(log.queries[0])
    distances = torch.tensor([float((query ^ code(key)).bit_count()) for key in log.keys])
    return -distances * (len(log.keys) + 1) + by_time(log)


UNITS = [
    SearchUnit("exact", selecting(ExactSearch()), by_score("dot")),
    SearchUnit("exact, cosine", selecting(ExactSearch(), "cosine"), by_score("cosine")),
    SearchUnit("exact, mlp", selecting(ExactSearch(), "mlp"), by_score("mlp")),
    SearchUnit("recent", selecting(RecentSearch()), by_time),
    SearchUnit("category", selecting(CategorySearch(fill=False)), by_category),
    SearchUnit("category, filled", selecting(CategorySearch(fill=True)), by_category_then_time),
    SearchUnit("simhash", selecting(SIMHASH), by_hamming_distance),
    SearchUnit("soft", selecting(SOFT), by_own_product),
]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
class TestSearch(SearchConformance):
    """Every search unit does what the suite says."""


def test_exact_search_answers_best_first() -> None:
    # one history 5 3 4, one candidate
    log = draw_log(lengths=(3,), counts=(1,))
    keys = torch.zeros(3, WIDTH)
    keys[:, 0] = torch.tensor([5.0, 3.0, 4.0])
    log = dataclasses.replace(log, queries=torch.ones(1, WIDTH), keys=keys)
    assert selecting(ExactSearch())(log, 3).rows.tolist() == [[0, 2, 1]]


def test_a_search_without_scores_looks_nothing_up() -> None:
    log = draw_log()

    def refuse() -> tuple[Tensor, Tensor]:
        raise AssertionError("looked up")

    for search in (RecentSearch(), CategorySearch(fill=True)):
        assert search(histories_of(log), refuse, SCORES["dot"], 4).valid.any()


def test_a_bit_agrees_as_often_as_the_angle_says() -> None:
    # 1 - theta / pi, with a standard error of 0.5 / sqrt(20,000) = 0.0035
    planes = hyperplanes(WIDTH, 20_000)
    one, other = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    agree = ((one @ planes > 0) == (other @ planes > 0)).float().mean()
    angle = F.cosine_similarity(one, other, dim=0).acos()
    assert abs(agree - (1 - angle / torch.pi)) < 4 * 0.0035


CASES = [
    # events n, chosen positions, others wanted M
    pytest.param(9, [2, 7, 3], 4, id="some of the rest"),
    pytest.param(9, [8, 0], 7, id="exactly the rest"),
    pytest.param(9, [8, 0], 20, id="more than the rest"),
    pytest.param(50, [49, 48, 47, 0, 1, 2], 1, id="one"),
    pytest.param(3, [1, 2, 0], 4, id="nothing left"),
    pytest.param(0, [], 4, id="no history"),
    pytest.param(6, [], 2, id="nothing chosen"),
]
FIRST_ROW = 100
"""Where the history begins in the jagged batch."""


def draw_others(
    length: int, chosen: list[int], count: int, draw: Tensor, k: int = 8
) -> tuple[Selection, Tensor]:
    """Others of the same history for each of the draws."""
    padded = torch.tensor([FIRST_ROW + c for c in chosen] + [0] * (k - len(chosen)))
    valid = torch.arange(k) < len(chosen)
    same = len(draw)
    return sample_others(
        Selection(padded.expand(same, -1), valid.expand(same, -1)),
        torch.full((same,), FIRST_ROW),
        torch.full((same,), length),
        count,
        draw,
    )


def spread(count: int) -> Tensor:
    """The middles of ``count`` equal parts of (0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def rest_of(length: int, chosen: list[int]) -> set[int]:
    return {FIRST_ROW + j for j in range(length)} - {FIRST_ROW + c for c in chosen}


@pytest.mark.parametrize(("length", "chosen", "count"), CASES)
def test_others_are_distinct_events_that_were_not_chosen(
    length: int, chosen: list[int], count: int
) -> None:
    others, _ = draw_others(length, chosen, count, spread(500))
    rest = rest_of(length, chosen)
    for rows, valid in zip(others.rows, others.valid, strict=True):
        drawn = rows[valid].tolist()
        assert len(drawn) == len(set(drawn)) == min(count, len(rest))
        assert set(drawn) <= rest
        assert not rows[~valid].any()


@pytest.mark.parametrize(("length", "chosen", "count"), CASES)
def test_every_other_has_the_same_chance(length: int, chosen: list[int], count: int) -> None:
    # An event is drawn when the start lies in a set of measure p = M / (n - K), an interval of
    # (0, 1) or, wrapped around, two. Of T evenly spaced starts an interval of length l holds T l
    # give or take one, so an event is drawn T p times give or take two.
    starts = 1000
    others, _ = draw_others(length, chosen, count, spread(starts))
    drawn = others.rows[others.valid].tolist()
    rest = rest_of(length, chosen)
    for row in rest:
        assert abs(drawn.count(row) - starts * min(1, count / len(rest))) <= 2


def test_hashed_starts_give_every_other_the_same_chance() -> None:
    # 7 of 23: binomial of T = 4000, p = 7/23, standard deviation 29.1; five of them are 146
    draws = uniform(3, torch.arange(2000)[:, None], torch.arange(2)).flatten()
    others, _ = draw_others(25, [4, 11], 7, draws)
    counts = torch.bincount(others.rows.flatten() - FIRST_ROW, minlength=25)
    assert counts[[4, 11]].tolist() == [0, 0]
    free = counts[counts > 0]
    assert len(free) == 23
    assert (free - 4000 * 7 / 23).abs().max() < 146


@pytest.mark.parametrize(("length", "chosen", "count"), CASES)
def test_an_other_stands_for_its_share_of_the_rest(
    length: int, chosen: list[int], count: int
) -> None:
    _, log_weight = draw_others(length, chosen, count, torch.tensor([0.3], dtype=torch.float64))
    rest = length - len(chosen)
    share = rest / count if rest > count else 1.0
    expected = torch.tensor([[share]], dtype=torch.float64).log()
    torch.testing.assert_close(log_weight, expected, rtol=1e-14, atol=0)


def test_the_order_of_the_chosen_does_not_matter_to_the_others() -> None:
    some, _ = draw_others(30, [3, 17, 9, 28], 6, spread(50))
    same, _ = draw_others(30, [28, 9, 3, 17], 6, spread(50))
    assert torch.equal(some.rows, same.rows)


def test_others_of_candidates_are_drawn_apart() -> None:
    # histories of 6 and 9 events, the first with two candidates
    lengths, counts = torch.tensor([6, 9]), torch.tensor([2, 1])
    length = lengths.repeat_interleave(counts)
    first = first_rows(lengths).repeat_interleave(counts)
    # in the middle of each of M = 2 equal parts of what was not chosen
    draw = torch.full((3,), 0.5, dtype=torch.float64)
    chosen = Selection(
        torch.tensor([[0, 1], [5, 2], [9, 0]]),
        torch.tensor([[True, True], [True, True], [True, False]]),
    )
    others, log_weight = sample_others(chosen, first, length, 2, draw)
    # not chosen: 2 3, 4 5 | 0 1, 3 4 | 6 7 8 10, 11 12 13 14
    assert others.rows.tolist() == [[3, 5], [1, 4], [8, 13]]
    torch.testing.assert_close(log_weight.exp().flatten().tolist(), [2.0, 2.0, 4.0])
