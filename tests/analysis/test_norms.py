"""Norms of sharded tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.norms import norms_by_frequency, row_norms
from tests.ranks import run_ranks


def test_rows_and_columns_may_lie_on_any_rank() -> None:
    table = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))

    def measure(rank: int, world_size: int) -> list[float]:
        shards = [[(table[:5, :4], 0)], [(table[5:], 5), (table[:5, 4:], 0)]][rank]
        return row_norms(shards, 7, torch.device("cpu")).tolist()

    for found in run_ranks(measure, 2):
        assert found == pytest.approx(table.norm(dim=1).tolist())


def test_deciles_go_from_rare_to_frequent_and_leave_out_what_never_occurs() -> None:
    frequency = np.array([99, *range(20, 0, -1), 0])
    norms = frequency * 2.0
    found = norms_by_frequency(norms, frequency)
    assert found["rows"] == 20
    assert found["mean"] == pytest.approx(21)
    assert [part["frequency"] for part in found["deciles"]] == [1.5 + 2 * i for i in range(10)]
    assert [part["mean"] for part in found["deciles"]] == [3 + 4 * i for i in range(10)]
    assert found["deciles"][0]["std"] == pytest.approx(1)
    assert norms_by_frequency(np.array([5.0, 1.0, 3.0]), None) == {
        "rows": 2, "mean": 2.0, "std": 1.0, "deciles": [],
    }  # fmt: skip
