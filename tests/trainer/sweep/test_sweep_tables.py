"""The tables: every row is a training that its experiment takes, or a step that can be measured."""

from __future__ import annotations

import dataclasses
import operator
import re
from pathlib import Path

import pytest

from data.sources.teacher import Teacher
from data.store import EventStore, Field
from modules.crossing import make_crossing
from trainer.state import build_ranker
from trainer.sweep.cells import experiment_of
from trainer.sweep.crossing_tables import SIDES, SURROUNDINGS
from trainer.sweep.kinds import KINDS
from trainer.sweep.rows import flags_of as words_of
from trainer.sweep.tables import TABLES, Row

TRAININGS = {name: table for name, table in TABLES.items() if table.kind == "training"}
ROWS = [(name, row) for name, table in TRAININGS.items() for row in table.rows]
STEP_TABLES = [name for name, table in TABLES.items() if table.kind == "step"]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{name}/{row.label}" for name, row in ROWS])
def test_every_row_fits_its_experiment(table: str, row: Row) -> None:
    experiment = experiment_of(row, (*TABLES[table].flags, *row.flags))
    for flag, words in flags_of(row).items():
        name = flag.removeprefix("--").replace("-", "_")
        value = operator.attrgetter(name.replace(".no_", "."))(experiment)
        if not words:
            assert value is (".no_" not in name), flag
        elif isinstance(value, dict):
            names, numbers = words[::2], map(float, words[1::2])
            assert value == dict(zip(names, numbers, strict=True)), flag
        elif isinstance(value, tuple):
            assert [*map(str, value)] == words, flag
        else:
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


@pytest.mark.parametrize("table", TRAININGS)
def test_every_row_is_a_model(table: str, store: Path) -> None:
    """On an event store that knows what surrounds a request, without memory for its tables."""
    info = EventStore.open(store).info
    sides = [Field(name=name, num_embeddings=5) for name in SIDES if name != "category"]
    context = [Field(name=name, num_embeddings=5) for name in SURROUNDINGS]
    info = dataclasses.replace(info, fields=(*info.fields, *sides), context=(*context,))
    known = EventStore(store, info)
    for row in TABLES[table].rows:
        experiment = experiment_of(row, (*TABLES[table].flags, *row.flags))
        ranker = build_ranker(experiment, known)
        assert ranker.config == experiment.model
        tables = " ".join(name for name, _ in ranker.named_modules())
        assert not any(f"_{name}" in tables for name in experiment.fields.without)


@pytest.mark.parametrize("row", TABLES["matched"].rows, ids=lambda row: row.label)
def test_matched_networks_have_as_many_parameters(row: Row) -> None:
    """Outside the tables, on the fields of the teacher's log."""
    config = experiment_of(row, (*TABLES["matched"].flags, *row.flags)).model.crossing
    assert config.dropout == 0
    network = make_crossing(config, Teacher.fields, Teacher.width)
    count = sum(parameter.numel() for parameter in network.parameters())
    wanted = 1_215 if row.label.endswith("-alone") else 10_000
    assert 0.95 < count / wanted < 1.05


@pytest.mark.parametrize("name", STEP_TABLES)
def test_every_row_is_a_step_of_its_size(name: str) -> None:
    for row in TABLES[name].rows:
        step = KINDS["step"].cell.settings_of(row, row.flags)
        for flag, (word,) in flags_of(row).items():
            assert str(getattr(step, flag.removeprefix("--"))) == word
        assert row.x == getattr(step, name)


def test_steps_are_of_the_sizes_that_the_questions_name() -> None:
    sizes = {name: {row.x for row in TABLES[name].rows} for name in STEP_TABLES}
    assert sizes == {
        "ids": {10_000, 30_000, 100_000, 300_000, 1_000_000},
        "fields": {10, 20, 39, 80, 160},
    }


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


def test_flags_are_words_of_the_command_line() -> None:
    found = words_of(history_length=200, model__top_k=5, fields__without=("item", "store"))
    assert " ".join(found) == "--history-length 200 --model.top-k 5 --fields.without item store"
    assert words_of(time_gap=True) == ("--time-gap",)
    assert words_of(model__crossing__residual=False) == ("--model.crossing.no-residual",)


def test_a_row_wins_over_its_table() -> None:
    row = Row("long", "dare", ("--history-length", "300"))
    assert experiment_of(row, ("--history-length", "200", *row.flags)).history_length == 300


def test_twin_is_compared_with_dare_at_the_same_value() -> None:
    table = TABLES["history-length"]
    twin = next(row for row in table.rows if row.label == "twin-800")
    assert table.reference_of(twin).label == "dare-800"
    assert table.reference_of(table.reference_of(twin)).label == "dare-200"
    assert table.reference_of(table.reference_of(table.reference_of(twin))) is None


def test_each_row_of_the_forward_table_adds_one_field_to_the_row_before() -> None:
    table = TABLES["context-fields-forward"]
    without = [{*flags_of(row).get("--fields.without", [])} for row in table.rows]
    assert without[0] == {*SURROUNDINGS, *SIDES} - {"category"}
    assert without[-1] == set()
    for before, row, left in zip(table.rows, table.rows[1:], without[1:], strict=False):
        assert {row.label.removeprefix("plus-")} | left == without[table.rows.index(before)]
        assert table.reference_of(row) is before
