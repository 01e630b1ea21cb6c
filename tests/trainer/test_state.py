"""How a model under training is built, and what a step sets before it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.store import EventStore
from sharding.apply import TableOptimizer
from tests.trainer.small_runs import EXPERIMENT
from trainer.state import _seed_dropout, build_ranker


@pytest.mark.parametrize(
    ("world_size", "changes", "sums"),
    [
        (2, {}, True),
        (1, {}, False),
        # both look at gradients of single rows
        (2, {"record_gradients": 3}, False),
        (2, {"tables": TableOptimizer(weight_decay=0.1)}, False),
    ],
)
def test_tables_sum_rows_where_rows_would_cross_between_ranks(
    store: Path, world_size: int, changes: dict[str, Any], *, sums: bool
) -> None:
    experiment = EXPERIMENT.changed(**changes)
    ranker = build_ranker(experiment, EventStore.open(store), world_size=world_size)
    assert ranker.tables.representation.is_weighted() == sums
    assert not ranker.tables.attention.is_weighted()


def test_dropout_draws_from_the_seed_of_the_step_whatever_was_drawn_before() -> None:
    ones, draws = torch.ones(100), []
    for drawn_before in (0, 7):
        torch.rand(drawn_before)
        _seed_dropout(2**63 - 1, torch.device("cpu"))
        draws.append(torch.nn.functional.dropout(ones))
    torch.manual_seed(2**63 - 1)
    assert draws[0].tolist() == draws[1].tolist() == torch.nn.functional.dropout(ones).tolist()
    assert 0 < draws[0].count_nonzero() < 100
