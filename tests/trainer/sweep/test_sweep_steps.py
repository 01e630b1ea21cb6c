"""``twofold sweep`` on tables of steps: real measurements, small."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.sweep.small_sweeps import lines
from trainer import cli
from trainer.sweep.results import Record
from trainer.sweep.rows import Row, SweepTable
from trainer.sweep.steps import MEASURED, Measurement, step_page
from trainer.sweep.tables import TABLES

ROWS = ("rowwise-adagrad-12-10000", "rowwise-adagrad-12-30000", "two-hashes-12-10000")
SMALL = ("--", "--batch", "4", "--repeats", "2")


def sweep(out: Path, *options: str, flags: tuple[str, ...] = SMALL) -> list[str]:
    return ["sweep", "ids", "--out", str(out), "--seeds", "1", "--rows", *ROWS, *options, *flags]


def test_cells_are_measured_and_those_that_are_done_are_skipped(
    tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert cli.run(sweep(out)) == 0
    assert "3 cells, 0 done" in capsys.readouterr().out
    results = lines(out / "results.csv")
    assert [(row["row"], row["seed"]) for row in results] == [(row, "1") for row in ROWS]
    for row in results:
        cell = out / "cells" / f"{row['row']}-seed{row['seed']}"
        summary = json.loads((cell / "summary.json").read_text())
        assert all(float(row[name]) == summary[name] for name in MEASURED)
        assert (row["batch"], row["repeats"], row["width"]) == ("4", "2", "12")
    table = {row["row"]: row for row in lines(out / "table.csv")}
    assert set(table) == set(ROWS)
    assert table[ROWS[2]]["reference"] == ROWS[0]
    assert not table[ROWS[0]]["slope_time"]
    assert math.isfinite(float(table[ROWS[1]]["slope_time"]))
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 1
    assert "Data fingerprint" not in (out / "table.md").read_text()

    again = out / "cells" / f"{ROWS[1]}-seed1" / "summary.json"
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("summary.json")}
    again.unlink()
    assert cli.run(sweep(out, "--list")) == 0
    states = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert ["begun", f"{ROWS[1]}-seed1"] in states
    assert cli.run(sweep(out)) == 0
    assert "3 cells, 2 done" in capsys.readouterr().out
    after = {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("summary.json")}
    assert [file for file in after if after[file] != before[file]] == [again]

    other = ("--", "--batch", "8", "--repeats", "2")
    assert cli.run(sweep(out, flags=other)) == 2
    assert "config.batch: 4 -> 8" in capsys.readouterr().err
    assert cli.run(sweep(out, "--replace", flags=other)) == 0
    assert {row["batch"] for row in lines(out / "results.csv")} == {"8"}


def test_a_cell_that_fails_is_told(
    tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("trainer.steps.table_step.FusedTable.__call__", None)
    assert cli.run(sweep(tmp_path / "sweep")) == 1
    shown = capsys.readouterr().err
    assert f"{ROWS[0]}-seed1 failed with exit code 1" in shown
    assert [row["row"] for row in lines(tmp_path / "sweep" / "results.csv")] == [ROWS[2]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "store"], "--data"),
        (["--processes", "2"], "--processes"),
        (["--", "--bogus"], "--bogus"),
        (["--", "--ids", "5"], "--ids is set by rows of this table"),
        (["--", "--batch", "0"], "Row dense-adam-12-10000: batch must be at least 1, got 0"),
        (["--", "--seed", "3"], "Seeds are those of --seeds"),
    ],
)
def test_what_a_table_of_steps_does_not_take_is_refused(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.run(["sweep", "ids", "--out", str(out), *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not out.exists()


TABLE = SweepTable(
    sentence="", axis="ids", reference="a-10", kind="step",
    rows=(
        *(Row(f"a-{x}", "table", line="a", x=x) for x in (10, 20, 40)),
        Row("b-40", "table", (), "a-40", line="b", x=40),
    ),
)  # fmt: skip


def measured(label: str, batch: int, milliseconds: float, peak: float | None) -> Record:
    return {
        "row": label, "batch": batch, "milliseconds": milliseconds,
        "rows_per_second": 1e3 * batch / milliseconds, "resident_bytes": peak, "peak_bytes": peak,
    }  # fmt: skip


def cell(label: str, seed: int) -> Measurement:
    row = next(row for row in TABLE.rows if row.label == label)
    return Measurement(row, seed, Path(), (), {}, None, None)


def test_slopes_and_ratios_are_those_of_a_hand_count() -> None:
    """Time 3, 6, 24: once in proportion, once with the square; b takes a row 8 times as long."""
    of_cells: dict[str, tuple[Any, ...]] = {
        "a-10": ((100, 2.0, 8.0), (100, 4.0, 8.0)),
        "a-20": ((100, 6.0, 8.0),),
        "a-40": ((100, 24.0, 32.0),),
        "b-40": ((50, 96.0, None),),
    }
    done, records = [], {}
    for label, values in of_cells.items():
        for seed, (batch, milliseconds, peak) in enumerate(values, 1):
            done.append(cell(label, seed))
            records[done[-1].name] = measured(label, batch, milliseconds, peak)
    page = step_page(TABLE, done, records)
    found = {record["row"]: record for record in page.records}
    assert [found[f"a-{x}"]["slope_time"] for x in (20, 40)] == pytest.approx([1, 2])
    assert [found[f"a-{x}"]["slope_peak"] for x in (20, 40)] == pytest.approx([0, 2])
    assert math.isnan(found["a-10"]["slope_time"])
    assert found["a-10"]["milliseconds_std"] == pytest.approx(2**0.5)
    assert found["b-40"]["time_ratio"] == pytest.approx(8)
    assert found["a-40"]["time_ratio"] == pytest.approx(8)
    assert math.isnan(found["b-40"]["slope_peak"])
    assert page.rows[-1][-2:] == ["a-40", "8.00"]
    assert [panel.title.split(" over ")[0] for panel in page.panels] == [
        "Microseconds of a row", "Peak MB of a step",
    ]  # fmt: skip


def test_every_line_has_its_own_sizes_and_a_reference_of_its_size() -> None:
    for name in ("ids", "fields"):
        table = TABLES[name]
        for row in table.rows:
            reference = table.reference_of(row)
            assert reference is None or (reference.x, reference.panel) == (row.x, row.panel)
        places = [dataclasses.astuple(row)[4:] for row in table.rows]
        assert len(set(places)) == len(places)
