"""What every search unit must do, whatever it ranks by: one suite, one line per unit.

@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
class TestSearch(SearchConformance): ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from modules.jagged import first_rows
from modules.search import Selection

K = 5
LENGTHS = (0, 3, 1, 200, K - 1, K, K + 1, 0, 37)
"""Histories: none at either side, one event, around K, much longer."""
COUNTS = (2, 1, 6, 3, 1, 4, 2, 3, 5)


@dataclass(frozen=True)
class Log:
    """A batch as a search sees it. Shapes: R requests, S candidates, N events, A width."""

    queries: Tensor
    """(S, A)."""
    keys: Tensor
    """(N, A)."""
    lengths: Tensor
    """(R,) events of each history."""
    counts: Tensor
    """(R,) candidates of each request."""
    event_category: Tensor
    """(N,)."""
    candidate_category: Tensor
    """(S,)."""

    def spans(self) -> list[tuple[int, int]]:
        """First event and number of events of each candidate's history."""
        firsts, lengths = first_rows(self.lengths).tolist(), self.lengths.tolist()
        return [
            (first, length)
            for first, length, count in zip(firsts, lengths, self.counts.tolist(), strict=True)
            for _ in range(count)
        ]

    def request(self, number: int) -> Log:
        """A batch of this request alone."""
        event, candidate = first_rows(self.lengths)[number], first_rows(self.counts)[number]
        length, count = self.lengths[number], self.counts[number]
        return Log(
            self.queries[candidate : candidate + count],
            self.keys[event : event + length],
            length[None],
            count[None],
            self.event_category[event : event + length],
            self.candidate_category[candidate : candidate + count],
        )

    def seen_by(self, candidate: int) -> Log:
        """A batch of this candidate and its history alone."""
        first, length = self.spans()[candidate]
        one, own = slice(candidate, candidate + 1), slice(first, first + length)
        return Log(
            self.queries[one],
            self.keys[own],
            torch.tensor([length]),
            torch.ones(1, dtype=torch.int64),
            self.event_category[own],
            self.candidate_category[one],
        )


@dataclass(frozen=True)
class SearchUnit:
    """A search under test."""

    name: str
    select: Callable[[Log, int], Selection]
    """Keeps at most k events for each candidate."""
    preference: Callable[[Log], Tensor]
    """One candidate and its history of n events in time order -> (n,): the k highest are kept,
    those at -inf never."""

    def allowed(self, log: Log) -> list[int]:
        """Events of each candidate's history that may be kept."""
        preferences = [self.preference(log.seen_by(c)) for c in range(len(log.queries))]
        return [int((preference > -torch.inf).sum()) for preference in preferences]


def draw_log(
    lengths: tuple[int, ...] = LENGTHS, counts: tuple[int, ...] = COUNTS, width: int = 8
) -> Log:
    draws = torch.Generator().manual_seed(0)
    return Log(
        torch.randn(sum(counts), width, generator=draws),
        torch.randn(sum(lengths), width, generator=draws),
        torch.tensor(lengths),
        torch.tensor(counts),
        torch.randint(0, 3, (sum(lengths),), generator=draws),
        torch.randint(0, 3, (sum(counts),), generator=draws),
    )


def chosen_rows(selection: Selection) -> list[list[int]]:
    """The valid rows of each candidate, in the order of the search."""
    pairs = zip(selection.rows, selection.valid, strict=True)
    return [rows[valid].tolist() for rows, valid in pairs]


class SearchConformance:
    """The suite."""

    @pytest.mark.parametrize("k", [1, K, 300])
    def test_it_keeps_the_best_k_of_the_own_history(self, unit: SearchUnit, k: int) -> None:
        assert_keeps_the_best(unit, draw_log(), k)

    def test_histories_of_equal_length_are_told_apart(self, unit: SearchUnit) -> None:
        assert_keeps_the_best(unit, draw_log(lengths=(9,) * 7, counts=(1, 2, 3, 1, 2, 3, 1)), K)

    @pytest.mark.parametrize("scale", [1.0, 1e4, 1e18])
    def test_padding_never_wins(self, unit: SearchUnit, scale: float) -> None:
        # every real score is far below zero
        log = draw_log()
        log = dataclasses.replace(
            log, queries=torch.ones_like(log.queries), keys=-scale * log.keys.abs()
        )
        for chosen, (first, length), allowed in zip(
            chosen_rows(unit.select(log, K)), log.spans(), unit.allowed(log), strict=True
        ):
            assert len(chosen) == min(K, allowed)
            assert all(first <= row < first + length for row in chosen)

    def test_no_more_than_k_events_are_all_kept(self, unit: SearchUnit) -> None:
        log = draw_log(lengths=(0, 1, 2, K - 1, K), counts=(1, 1, 2, 3, 1))
        for chosen, (first, length), allowed in zip(
            chosen_rows(unit.select(log, K)), log.spans(), unit.allowed(log), strict=True
        ):
            assert len(set(chosen)) == len(chosen) == allowed
            assert set(chosen) <= set(range(first, first + length))

    def test_the_selection_is_k_wide_and_zero_where_not_valid(self, unit: SearchUnit) -> None:
        log = draw_log()
        for k in (1, K, 300):
            rows, valid = unit.select(log, k)
            assert rows.shape == valid.shape == (len(log.queries), k)
            assert rows.dtype == torch.int64
            assert valid.dtype == torch.bool
            assert not rows[~valid].any()

    def test_valid_events_come_first(self, unit: SearchUnit) -> None:
        valid = unit.select(draw_log(), 300).valid.int()
        assert (valid[:, 1:] <= valid[:, :-1]).all()

    @pytest.mark.parametrize("lengths", [(0, 0, 0), (0,)])
    def test_a_batch_without_events_has_nothing_to_keep(
        self, unit: SearchUnit, lengths: tuple[int, ...]
    ) -> None:
        selection = unit.select(draw_log(lengths=lengths, counts=(2,) * len(lengths)), K)
        assert not selection.valid.any()
        assert not selection.rows.any()

    def test_a_request_without_candidates_disturbs_nobody(self, unit: SearchUnit) -> None:
        assert_keeps_the_best(unit, draw_log(lengths=(12, 9, 12, 7), counts=(2, 0, 3, 0)), K)

    def test_a_repeated_event_is_kept_as_often_as_it_happened(self, unit: SearchUnit) -> None:
        log = draw_log(lengths=(K + 4, K), counts=(2, 1))
        # the first history: one event K + 4 times
        log.keys[: K + 4] = log.keys[0].clone()
        log.event_category[:] = log.candidate_category[:] = 1
        for chosen in chosen_rows(unit.select(log, K)):
            assert len(set(chosen)) == K

    def test_the_rest_of_the_batch_does_not_matter(self, unit: SearchUnit) -> None:
        log = draw_log()
        together = iter(chosen_rows(unit.select(log, K)))
        for number, first in enumerate(first_rows(log.lengths).tolist()):
            for alone in chosen_rows(unit.select(log.request(number), K)):
                assert [first + row for row in alone] == next(together)

    @pytest.mark.parametrize("block_events", [1, 10, 50])
    def test_the_size_of_the_blocks_does_not_matter(
        self, unit: SearchUnit, block_events: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = draw_log()
        expected = unit.select(log, K)
        monkeypatch.setattr("modules.jagged.BLOCK_EVENTS", block_events)
        actual = unit.select(log, K)
        assert torch.equal(actual.rows, expected.rows)
        assert torch.equal(actual.valid, expected.valid)

    def test_nothing_is_kept_for_a_backward_pass(self, unit: SearchUnit) -> None:
        log = draw_log()
        log.queries.requires_grad_()
        log.keys.requires_grad_()
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
            unit.select(log, K)
        assert saved == []

    def test_its_inputs_stay_as_they_were(self, unit: SearchUnit) -> None:
        log, again = draw_log(), draw_log()
        unit.select(log, K)
        assert torch.equal(log.queries, again.queries)
        assert torch.equal(log.keys, again.keys)


def assert_keeps_the_best(unit: SearchUnit, log: Log, k: int) -> None:
    """Against ``torch.topk`` on each candidate's own history. Preferences are compared, not rows:
    which of two equal events is kept is open."""
    for number, (chosen, (first, length)) in enumerate(
        zip(chosen_rows(unit.select(log, k)), log.spans(), strict=True)
    ):
        preference = unit.preference(log.seen_by(number))
        allowed = int((preference > -torch.inf).sum())
        assert all(first <= row < first + length for row in chosen)
        assert len(set(chosen)) == len(chosen)
        torch.testing.assert_close(
            preference[torch.tensor(chosen, dtype=torch.int64) - first],
            preference.topk(min(k, allowed)).values,
        )
