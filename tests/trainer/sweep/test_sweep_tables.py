"""The tables: every row is a training that its experiment takes."""

from __future__ import annotations

import operator
import re
from pathlib import Path

import pytest

from data.store import EventStore
from trainer.state import build_ranker
from trainer.sweep.cells import experiment_of
from trainer.sweep.tables import TABLES, Row

ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{name}/{row.label}" for name, row in ROWS])
def test_every_row_fits_its_experiment(table: str, row: Row) -> None:
    experiment = experiment_of(row, (*TABLES[table].flags, *row.flags))
    for flag, words in flags_of(row).items():
        value = operator.attrgetter(flag.removeprefix("--").replace("-", "_"))(experiment)
        if isinstance(value, dict):
            names, numbers = words[::2], map(float, words[1::2])
            assert value == dict(zip(names, numbers, strict=True)), flag
        elif isinstance(value, tuple):
            assert [*map(str, value)] == words, flag
        elif words:
            assert value == type(value)(*words), flag


def flags_of(row: Row) -> dict[str, list[str]]:
    """The words that follow each flag."""
    flags: dict[str, list[str]] = {}
    for word in row.flags:
        if word.startswith("--"):
            flags[word] = words = []
        else:
            words.append(word)
    return flags


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_model(table: str, store: Path) -> None:
    """On an event store, without memory for its tables."""
    for row in TABLES[table].rows:
        experiment = experiment_of(row, (*TABLES[table].flags, *row.flags))
        assert build_ranker(experiment, EventStore.open(store)).config == experiment.model


@pytest.mark.parametrize("name", TABLES)
def test_labels_are_folders_and_references_are_rows(name: str) -> None:
    table = TABLES[name]
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", label) for label in labels)
    assert table.reference in labels
    assert all(row.reference in (None, *labels) for row in table.rows)
    assert len({row.x is None for row in table.rows}) == 1


@pytest.mark.parametrize("name", TABLES)
def test_rows_differ(name: str) -> None:
    rows = [(row.experiment, row.flags) for row in TABLES[name].rows]
    assert len(set(rows)) == len(rows)


def test_a_row_wins_over_its_table() -> None:
    row = Row("long", "dare", ("--history-length", "300"))
    assert experiment_of(row, ("--history-length", "200", *row.flags)).history_length == 300


def test_twin_is_compared_with_dare_at_the_same_value() -> None:
    table = TABLES["history-length"]
    twin = next(row for row in table.rows if row.label == "twin-800")
    assert table.reference_of(twin).label == "dare-800"
    assert table.reference_of(table.reference_of(twin)).label == "dare-200"
    assert table.reference_of(table.reference_of(table.reference_of(twin))) is None
