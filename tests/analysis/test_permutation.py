"""A permuted field against numpy's permutation of the column, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.permutation import Kind, ReadField, permuted
from data.batch import RankingBatch
from data.loader import RequestLoader
from data.prepare import prepare
from data.sources.criteo import Criteo
from data.sources.synthetic import Synthetic
from data.store import EventStore
from tests.data.flat_logs import criteo_rows, write_criteo

SOURCE = Synthetic(users=20, events_per_user=30, items=50, categories=6, history_needed=5)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("events") / "store"
    prepare(SOURCE, folder, partitions=3)
    return EventStore.open(folder)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("flat")
    file = write_criteo(folder / "train.txt", criteo_rows(300))
    prepare(Criteo(path=(file,), preparation="x1"), folder / "store", partitions=4)
    return EventStore.open(folder / "store")


def batches(store: EventStore, world_size: int) -> list[RankingBatch]:
    """Of all ranks, a global batch after the other."""
    ranks = [
        RequestLoader(
            store, "train", requests_per_batch=13, history_length=1, shuffle=False, prefetch=0,
            rank=rank, world_size=world_size,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    return [batch for together in zip(*ranks, strict=True) for batch in together]


def columns(parts: list[RankingBatch], store: EventStore) -> dict[tuple[Kind, str], np.ndarray]:
    """Every column of the batches, put together."""
    found = {}
    for kind in ("context", "candidates"):
        bags = [getattr(part, kind) for part in parts]
        names: list[str] = bags[0].keys()
        for name in names:
            ids = [of_part[name].values().numpy() for of_part in bags]
            found[kind.removesuffix("s"), name] = np.concatenate(ids)
    for place, name in enumerate(store.numbers):
        found["number", name] = np.concatenate([part.numbers[:, place].numpy() for part in parts])
    found["candidate", "label"] = np.concatenate([part.labels.numpy() for part in parts])
    return found


def check(store: EventStore, field: ReadField, world_size: int) -> None:
    plain = batches(store, world_size)
    before = columns(plain, store)
    after = columns([permuted(store, "train", field, 5)(batch) for batch in plain], store)
    rng = np.random.default_rng(5)
    for (kind, name), values in before.items():
        expected = values
        if (kind, name) == (field.kind, field.name):
            expected = rng.permutation(values)
            assert not np.array_equal(expected, values)
        np.testing.assert_array_equal(after[kind, name], expected, err_msg=name)
    # the batches themselves are as they were
    for key, values in columns(plain, store).items():
        np.testing.assert_array_equal(values, before[key])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("kind", "name"), [("candidate", "item"), ("candidate", "category"), ("context", "user")]
)
def test_a_field_of_a_log_is_permuted_over_the_whole_split(
    kind: Kind, name: str, world_size: int, events: EventStore
) -> None:
    check(events, ReadField(name, kind), world_size)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("kind", "name"), [("context", "C7"), ("number", "I3")])
def test_a_column_of_a_flat_store_is_permuted_over_the_whole_split(
    kind: Kind, name: str, world_size: int, flat: EventStore
) -> None:
    check(flat, ReadField(name, kind), world_size)
