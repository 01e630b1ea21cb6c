from typing import Any

import pytest
from rich.console import Console

from trainer import formats
from trainer.tables import bytes_by_rank, plan_table, rank_list, results_table, store_table


def lines(table: Any) -> list[str]:
    """What a 100 columns wide terminal shows, with single spaces."""
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_results_show_metrics_with_their_interval_and_a_dash_for_what_is_undefined() -> None:
    dare = {
        "auc": 0.79694,
        "auc_interval": [0.7921, 0.80151],
        "gauc": 0.78,
        "logloss": 0.5512,
        "normalized_entropy": 0.866,
        "calibration": 1.0204,
        "samples_per_second": 12345.6,
    }
    twin = {**dare, "auc": None, "auc_interval": [None, None]}
    shown = lines(results_table({"dare": dare, "twin": twin}))
    assert "dare 0.7969 0.7921–0.8015 0.7800 0.5512 0.8660 1.020 12,346" in shown
    assert "twin – – 0.7800 0.5512 0.8660 1.020 12,346" in shown


def test_plan_shows_each_table_and_the_total() -> None:
    item = {
        "name": "item",
        "rows": 92_000,
        "width": 16,
        "bytes": 92_000 * 64,
        "sharding_type": "row_wise",
        "compute_kernel": "fused",
        "optimizer": "rowwise_adagrad",
        "shards": [{"rank": r, "offset": [46_000 * r, 0], "size": [46_000, 16]} for r in range(2)],
    }
    shown = lines(plan_table({"world_size": 2, "tables": [item]}))
    assert any("rowwise_adagrad" in line for line in shown)
    # rowwise Adagrad keeps one float for each row
    assert "item 92,000 16 5.6 MiB 359 KiB row_wise 0, 1" in shown
    assert "total 5.6 MiB 359 KiB" in shown


def test_memory_by_rank_counts_shards_where_they_are_and_replicas_everywhere() -> None:
    def entry(kind: str, optimizer: str, *shards: tuple[int, int, int]) -> dict[str, Any]:
        return {
            "name": kind, "rows": 10, "width": 8, "bytes": 320, "sharding_type": kind,
            "compute_kernel": "fused", "optimizer": optimizer,
            "shards": [
                {"rank": rank, "offset": [0, 0], "size": [rows, columns]}
                for rank, rows, columns in shards
            ],
        }  # fmt: skip

    plan = {
        "world_size": 3,
        "tables": [
            entry("row_wise", "rowwise_adagrad", (0, 4, 8), (1, 4, 8), (2, 2, 8)),
            # a state of its own for each shard of columns
            entry("column_wise", "rowwise_adagrad", (0, 10, 4), (2, 10, 4)),
            entry("table_wise", "adam", (1, 10, 8)),
            entry("data_parallel", "sgd"),
        ],
    }
    assert bytes_by_rank(plan) == [
        4 * (4 * 8 + 4) + 4 * (40 + 10) + 320,
        4 * (4 * 8 + 4) + 3 * 320 + 320,
        4 * (2 * 8 + 2) + 4 * (40 + 10) + 320,
    ]
    shown = lines(plan_table(plan))
    assert "Tables and optimizer by rank: from 592 B to 1.4 KiB (rank 1)." in shown
    assert "total 1.2 KiB 760 B" in shown


@pytest.mark.parametrize(
    ("ranks", "shown"), [([3], "3"), ([0, 2], "0, 2"), ([1, 2, 3], "1–3"), (None, "0–3")]
)
def test_ranks_of_a_table(ranks: list[int] | None, shown: str) -> None:
    shards = [{"rank": rank} for rank in ranks] if ranks else None
    assert rank_list(4, {"shards": shards}) == shown


def test_store_shows_totals_by_split_and_the_best_auc_only_where_known() -> None:
    by_split = {"train": 1000, "val": 100, "test": 10}
    store = {
        "source": "synthetic",
        "users": 2469,
        "events": 1_469_307,
        "items": 68_509,
        "categories": 302,
        "history": {"p50": 500, "p90": 1200, "p99": 3000, "max": 5000},
        "requests": by_split,
        "candidates": by_split,
        "positives": by_split,
        "partitions": [{}],
        "bytes": 2**20,
        "best_auc": 0.91,
    }
    shown = lines(store_table(store))
    assert "events 1,469,307" in shown
    assert "requests 1,110 1,000 100 10" in shown
    assert "best reachable AUC 0.9100" in shown
    assert not any("reachable" in line for line in lines(store_table({**store, "best_auc": None})))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB"), (None, "–")],
)
def test_sizes(value: int | None, shown: str) -> None:
    assert formats.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(4.25, "4.2 s"), (41, "41 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (None, "–")],
)
def test_durations(value: float | None, shown: str) -> None:
    assert formats.duration(value) == shown
