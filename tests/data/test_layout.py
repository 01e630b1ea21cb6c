"""Blocks of neighbouring ids carry equal loads, and nothing but values and counts decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.layout import even_order, lay_out
from data.prepare import prepare
from data.sources.synthetic import Synthetic
from data.sources.table import TableSource
from data.sources.teacher import Teacher
from data.store import EventStore
from tests.data.memory_source import MemorySource

WORLD_SIZES = (2, 3, 4, 8)


def busiest(loads: np.ndarray, world_size: int) -> float:
    """Load of the busiest of ``world_size`` blocks of rows, the mean being 1; blocks as TorchRec's
    row-wise shards: of ceil(rows / world_size) rows.
    """
    rows = -(-len(loads) // world_size)
    blocks = [loads[begin : begin + rows].sum() for begin in range(0, len(loads), rows)]
    return max(blocks) * world_size / loads.sum()


def least(loads: np.ndarray, world_size: int) -> float:
    """What a single hottest row leaves possible: equal blocks, or its block has as many rows as all
    others, and they are of those below the mean.
    """
    rows = -(-len(loads) // world_size)
    cold = loads[loads < loads.mean()].mean()
    return max(1.0, (loads.max() + (rows - 1) * cold) * world_size / loads.sum())


def zipf_counts(values: int, exponent: float, total: int) -> np.ndarray:
    """(values,) counts, falling."""
    share = np.arange(1, values + 1) ** -exponent
    return np.sort(np.random.default_rng(0).poisson(total * share / share.sum()))[::-1]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0])
def test_blocks_of_zipf_are_even(exponent: float, world_size: int) -> None:
    counts = zipf_counts(200_000, exponent, 5_000_000)
    assert exponent == 0 or busiest(counts, world_size) > 1.5  # popular first
    # an edge of a block may fall beside a hot value: half of the hottest is 0.032 of all at most
    assert busiest(counts[even_order(counts)], world_size) < 1.08


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_beside_a_value_hotter_than_a_block_stand_cold_ones(world_size: int) -> None:
    counts = np.array([50_000, *[50] * 1_000])
    loads = counts[even_order(counts)]
    assert busiest(loads, world_size) < 1.01 * least(loads, world_size)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_what_stands_before_the_first_value_is_made_up_for(world_size: int) -> None:
    counts, missing = zipf_counts(10_000, 0.8, 100_000), 20_000
    loads = np.array([missing, *counts[even_order(counts, before=missing)]])
    ignored = np.array([missing, *counts[even_order(counts)]])
    assert busiest(loads, world_size) < 1.05 * least(loads, world_size)
    assert busiest(ignored, world_size) > 1.1 * busiest(loads, world_size)


@pytest.mark.parametrize("values", range(6))
def test_every_value_has_one_id(values: int) -> None:
    counts = np.arange(values)[::-1]
    for before in (0, 3):
        assert sorted(even_order(counts, before)) == list(range(values))


def test_the_order_of_the_values_says_nothing() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"original": np.arange(500), "count": rng.integers(0, 9, 500)})
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    assert lay_out(shuffled, "count").equals(lay_out(frame, "count"))


def test_files_in_another_order_give_the_same_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):  # users and items of their own times: no event decides another
        pl.DataFrame(
            {
                "user": np.sort(rng.integers(10, 20, 400)) + number % 2 * 10,
                "item": rng.zipf(1.5, 400) % 50,
                "time": np.arange(400) + 1_000 * number,
            }
        ).write_csv(tmp_path / f"{number}.csv")
    words = []
    for name, order in (("a", "0123"), ("b", "3120")):
        folder = tmp_path / name
        folder.mkdir()
        for place, number in enumerate(order):
            (folder / f"{place}.csv").symlink_to(tmp_path / f"{number}.csv")
        source = TableSource(path=folder, sort=True)
        prepare(source, tmp_path / f"store-{name}")
        store = EventStore.open(tmp_path / f"store-{name}")
        words.append(store.originals("item").to_pylist())
    assert words[0] == words[1]


def test_items_categories_and_actions_of_a_store_are_even(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    item = np.sort(rng.zipf(1.1, 40_000) % 3_000)  # the first values of the log come most often
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 50, len(item)),
            "item": item,
            "time": np.arange(len(item)),
            "brand": item % 499,
            "action": item % 100,
        }
    )
    category = pl.when(pl.col("item") % 16 > 0).then(pl.col("item") % 701)
    frame = frame.with_columns(category=category)  # some are empty
    prepare(MemorySource(frames=[frame], side=("brand",)), tmp_path / "store", partitions=3)
    store = EventStore.open(tmp_path / "store")
    for name, rows in store.fields:
        events = np.concatenate([part.events[name] for part in store.partitions])
        loads = np.bincount(events, minlength=rows)
        for world_size in WORLD_SIZES:
            # an edge of a block may cut what belongs to a hot value
            assert busiest(loads, world_size) < 1.2 * least(loads, world_size), (name, world_size)


def test_columns_of_rows_without_users_are_even(tmp_path: Path) -> None:
    prepare(Teacher(rows=20_000, ids=500, zipf=1.0), tmp_path / "store")
    store = EventStore.open(tmp_path / "store")
    for name, _ in store.context:
        loads = store.train_counts(name)
        for world_size in WORLD_SIZES:
            # an edge of a block may cut what belongs to a hot value
            assert busiest(loads, world_size) < 1.2 * least(loads, world_size), (name, world_size)


def test_the_synthetic_log_is_even(tmp_path: Path) -> None:
    prepare(Synthetic(users=200, items=2_000), tmp_path / "store")
    loads = EventStore.open(tmp_path / "store").items["frequency"]
    for world_size in WORLD_SIZES:
        assert busiest(loads, world_size) < 1.1 * least(loads, world_size)
