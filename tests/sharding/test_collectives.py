"""Collectives of collections, by hand; tests/trainer/test_planning_calls.py asks gloo."""

from __future__ import annotations

import pytest

from sharding.collectives import Calls, calls_of_collection
from sharding.costs import Lookup

SEARCH, FOUND = Lookup(100, gradient=False), Lookup(20)
SUMS = (Lookup(5, rows=4, weighted=True), Lookup(5, weighted=True))


@pytest.mark.parametrize(
    ("kinds", "lookups", "expected"),
    [
        # sizes, lengths, ids, rows; the same again, and gradients
        ({"table_wise"}, (SEARCH, FOUND), Calls(9, 0)),
        # both sums in one call: sizes, lengths, ids, weights, rows; gradients of rows and weights
        ({"table_wise"}, SUMS, Calls(7, 0)),
        # rows of a search that reads a copy are not asked for
        ({"table_wise"}, (Lookup(100, gradient=False, local=True), FOUND), Calls(5, 0)),
        # two reduce-scatters for the rows; an all-gather brings gradients back
        ({"row_wise"}, (SEARCH, FOUND), Calls(7, 2)),
        ({"data_parallel"}, (SEARCH, FOUND), Calls(0, 1)),
        ({"data_parallel"}, (SEARCH,), Calls(0, 0)),
        # each sharding type asks for itself
        ({"table_wise", "column_wise", "data_parallel"}, (FOUND,), Calls(10, 1)),
    ],
)
def test_collectives_by_nccl(kinds: set[str], lookups: tuple[Lookup, ...], expected: Calls) -> None:
    assert calls_of_collection(kinds, lookups, gloo=False) == expected


def test_on_gloo_a_search_fetches_rows_and_ranks_agree_on_a_number_of_bags() -> None:
    kinds = {"row_wise", "table_wise"}
    # of a search how many ids, ids, rows, for both kinds together
    assert calls_of_collection(kinds, (SEARCH,), gloo=True) == Calls(3, 0)
    assert calls_of_collection({"data_parallel"}, (SEARCH,), gloo=True) == Calls(0, 0)
    nccl, gloo = (calls_of_collection(kinds, (FOUND,), gloo=g) for g in (False, True))
    assert gloo == nccl + Calls(0, 1)
