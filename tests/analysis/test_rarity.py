"""Bins of rows by their rarest id, against a count of the log's own lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from analysis.rarity import EDGES, binned, rarest_counts, rarity
from data.prepare import prepare
from data.sources.criteo import Criteo
from data.sources.synthetic import Synthetic
from data.store import EventStore
from tests.data.flat_logs import IDS, criteo_rows, write_criteo

ROWS = criteo_rows(900, seed=1)


def store_of(folder: Path, **options: object) -> EventStore:
    file = write_criteo(folder / "train.txt", ROWS)
    prepare(Criteo(path=(file,), **options), folder / "store", partitions=3)
    return EventStore.open(folder / "store")


def lines_of(store: EventStore, split: str) -> list[list[str]]:
    """Cells of ids of a split's rows."""
    return [ROWS[row][14:] for part in store.partitions for row in part.requests(split).time]


@pytest.mark.parametrize("min_count", [1, 3])
def test_the_rarest_id_is_that_of_the_lines(min_count: int, tmp_path: Path) -> None:
    store = store_of(tmp_path, preparation="x1", min_count=min_count)
    seen = [Counter(column) for column in zip(*lines_of(store, "train"), strict=True)]
    expected = []
    for cells in lines_of(store, "test"):
        counts = [
            # an empty cell is an id like any other, however rare
            count[cell] if count[cell] >= min_count or not cell else 0
            for count, cell in zip(seen, cells, strict=True)
        ]
        assert len(counts) == len(IDS)
        expected.append(min(counts))
    found, shared = rarest_counts(store, "test")
    assert found.tolist() == expected
    assert shared == (min_count > 1)
    parts = rarity(store, "test")
    assert parts.counted == "training rows of the rarest id"
    assert sum(part.chosen.astype(int) for part in parts.bins).tolist() == [1] * len(expected)
    assert parts.bins[0].label == ("unseen" if min_count == 1 else "unseen or too rare for an id")
    assert parts.bins[0].chosen.sum() == expected.count(0)


def test_bins_hold_what_their_names_say() -> None:
    counts = np.array([0, 1, 9, 10, 199, 200, 10_000, 5_000_000])
    found = {part.label: np.flatnonzero(part.chosen).tolist() for part in binned(counts, "unseen")}
    assert found == {
        "unseen": [0], "1–9": [1, 2], "10–49": [3], "50–199": [4], "200–999": [5],
        "10,000 and more": [6, 7],
    }  # fmt: skip
    assert EDGES[0] == 1


def test_hashed_values_are_not_counted(tmp_path: Path) -> None:
    assert rarity(store_of(tmp_path, hash_buckets=50), "test") is None


def test_in_a_log_the_item_decides(tmp_path: Path) -> None:
    source = Synthetic(users=20, events_per_user=30, items=50, categories=6, history_needed=5)
    prepare(source, tmp_path / "store", partitions=3)
    store = EventStore.open(tmp_path / "store")
    events = np.concatenate([part.events["item"] for part in store.partitions])
    candidates = np.concatenate([part.requests("test").candidates for part in store.partitions])
    counts = [int((events == item).sum()) for item in candidates]
    found = rarity(store, "test")
    assert "item in the whole log" in found.counted
    for part in found.bins:
        chosen = [count for count, taken in zip(counts, part.chosen, strict=True) if taken]
        low = 0 if part.label == "never" else int(part.label.split("–")[0].replace(",", ""))
        assert chosen
        assert all(count >= low for count in chosen)
    assert sum(part.chosen.sum() for part in found.bins) == len(candidates)
