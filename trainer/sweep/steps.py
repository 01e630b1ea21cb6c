"""Tables of steps: each cell measures one in a process of its own (trainer/steps/)."""

from __future__ import annotations

import json
import math
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import InputError
from trainer import formats
from trainer.report.figures import Series
from trainer.report.sections import Panel
from trainer.steps.kinds import step_of
from trainer.steps.step import Step
from trainer.sweep import pictures
from trainer.sweep.cells import Cell
from trainer.sweep.report import Page, colors_of
from trainer.sweep.results import Record
from trainer.sweep.rows import Row, SweepTable

MEASURED = ("milliseconds", "rows_per_second", "resident_bytes", "peak_bytes")
HEADINGS = (
    "row", "seeds", "rows a step", "ms a step", "rows/s", "resident", "peak", "slope of time",
    "slope of peak", "reference", "time of a row",
)  # fmt: skip
NOTES = (
    "Median of a process's steps, mean ± standard deviation over seeds, each a process of its own "
    "with other batches. Time is CPU time of one thread unless --threads asks for more. Memory is "
    "what the process holds more than without the table or network, without the batch: resident "
    "after a step, and at the peak of one.",
    "A slope is the difference of logarithms (time of a row, peak bytes) to the next smaller size "
    "of the same line, by that of the sizes: 1 grows in proportion, 2 with the square. The last "
    "column is the time of a row over the reference's.",
)


class Measurement(Cell):
    """A step, measured by ``python -m trainer.steps``. One that was stopped begins anew."""

    @staticmethod
    def settings_of(row: Row, flags: Sequence[str]) -> Step:
        """See :meth:`trainer.sweep.cells.Cell.settings_of`."""
        try:
            return step_of(row.experiment, flags)
        except InputError as error:
            raise InputError(f"Row {row.label}: {error}") from error

    @property
    def resumes(self) -> bool:
        """See :attr:`trainer.sweep.cells.Cell.resumes`."""
        return False

    def command(self, processes: int, how: str = "--resume") -> list[str]:
        """Measures the step; there is nothing to resume or to replace."""
        folder = str(self.folder.absolute())
        return [sys.executable, "-m", "trainer.steps", self.row.experiment, folder, *self.flags]


def step_record(cell: Cell) -> Record:
    """One line of ``results.csv``: settings, and what was measured."""
    summary, config = (
        json.loads((cell.folder / name).read_text()) for name in ("summary.json", "config.json")
    )
    return {
        "row": cell.row.label,
        "seed": cell.seed,
        "experiment": cell.row.experiment,
        **{name: value for name, value in cell.config.items() if name != "seed"},
        **{name: summary[name] for name in MEASURED},
        "flags": shlex.join(cell.flags),
        "commit": config["commit"],
        "data_fingerprint": None,
    }


@dataclass(frozen=True)
class StepResult:
    """A row over its seeds."""

    row: Row
    batch: int
    values: Mapping[str, Sequence[float]]
    """Of each of :data:`MEASURED`, a number for each seed; NaN where memory is not known."""

    def mean(self, name: str) -> float:
        """Over seeds."""
        return statistics.fmean(self.values[name])

    def std(self, name: str) -> float:
        """Over seeds; NaN for a single one."""
        values = self.values[name]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def microseconds(self) -> float:
        """Of a row, which steps of unequal batches have in common."""
        return 1e3 * self.mean("milliseconds") / self.batch


def step_page(table: SweepTable, done: Sequence[Cell], records: Mapping[str, Record]) -> Page:
    """Of a table of steps."""
    results = _results(table, done, records)
    return Page(
        HEADINGS,
        [_text_row(table, result, results) for result in results.values()],
        _panels(table, list(results.values())),
        NOTES,
        [_record(table, result, results) for result in results.values()],
    )


def _results(
    table: SweepTable, done: Sequence[Cell], records: Mapping[str, Record]
) -> dict[str, StepResult]:
    """By label, in the order of the table."""
    found = {}
    for row in table.rows:
        if of_row := [records[cell.name] for cell in done if cell.row.label == row.label]:
            values = {name: [_number(record[name]) for record in of_row] for name in MEASURED}
            found[row.label] = StepResult(row, of_row[0]["batch"], values)
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _slopes(result: StepResult, results: Mapping[str, StepResult]) -> tuple[float, float]:
    """Of the time of a row and of the peak, from the next smaller size of the line; else NaN."""
    row = result.row
    smaller = [
        other
        for other in results.values()
        if (other.row.panel, other.row.line) == (row.panel, row.line) and other.row.x < row.x
    ]
    if not smaller:
        return math.nan, math.nan
    before = max(smaller, key=lambda other: other.row.x)
    sizes = (before.row.x, row.x)
    return (
        _slope(sizes, (before.microseconds, result.microseconds)),
        _slope(sizes, (before.mean("peak_bytes"), result.mean("peak_bytes"))),
    )


def _slope(x: tuple[float, float], y: tuple[float, float]) -> float:
    """Of the logarithms. What rounds to no memory has none."""
    if not min(y) > 0:
        return math.nan
    return math.log(y[1] / y[0]) / math.log(x[1] / x[0])


def _ratio(table: SweepTable, result: StepResult, results: Mapping[str, StepResult]) -> float:
    reference = table.reference_of(result.row)
    if reference is None or reference.label not in results:
        return math.nan
    return result.microseconds / results[reference.label].microseconds


def _text_row(
    table: SweepTable, result: StepResult, results: Mapping[str, StepResult]
) -> list[str]:
    reference = table.reference_of(result.row)
    return [
        result.row.label,
        str(len(result.values["milliseconds"])),
        formats.count(result.batch),
        _mean_std(result, "milliseconds"),
        formats.count(result.mean("rows_per_second")),
        formats.size(result.mean("resident_bytes")),
        formats.size(result.mean("peak_bytes")),
        *(formats.signed(slope, 2) for slope in _slopes(result, results)),
        reference.label if reference else formats.MISSING,
        formats.decimal(_ratio(table, result, results), 2),
    ]


def _mean_std(result: StepResult, name: str) -> str:
    mean, std = formats.decimal(result.mean(name), 1), formats.decimal(result.std(name), 1)
    return mean if std == formats.MISSING else f"{mean} ± {std}"


def _record(table: SweepTable, result: StepResult, results: Mapping[str, StepResult]) -> Record:
    """One line of ``table.csv``."""
    row = result.row
    reference = table.reference_of(row)
    found: dict[str, Any] = {
        "row": row.label,
        "panel": row.panel,
        "line": row.line,
        "x": row.x,
        "batch": result.batch,
        "seeds": len(result.values["milliseconds"]),
    }
    for name in MEASURED:
        found |= {f"{name}_mean": result.mean(name), f"{name}_std": result.std(name)}
    of_time, of_peak = _slopes(result, results)
    return found | {
        "slope_time": of_time,
        "slope_peak": of_peak,
        "reference": reference.label if reference else None,
        "time_ratio": _ratio(table, result, results),
    }


def _panels(table: SweepTable, results: Sequence[StepResult]) -> list[Panel]:
    """Time and peak of each panel, both axes logarithmic."""
    panels = []
    for name in dict.fromkeys(result.row.panel for result in results):
        of_panel = [result for result in results if result.row.panel == name]
        for title, values in (
            ("Microseconds of a row", [result.microseconds for result in of_panel]),
            ("Peak MB of a step", [result.mean("peak_bytes") / 1e6 for result in of_panel]),
        ):
            what = f"{title} over {table.axis}" + (f", {name}" if name else "")
            series = _series(of_panel, values, colors_of(table))
            if series:
                caption = "Mean over seeds; both axes are logarithmic."
                picture = pictures.lines(series, table.axis, what, logarithmic=True)
                panels.append(Panel(what, picture, caption))
    return panels


def _series(
    results: Sequence[StepResult], values: Sequence[float], colors: Mapping[str, int]
) -> list[Series]:
    """What is known, and can be drawn on a logarithmic axis."""
    points: dict[str, list[tuple[Row, float]]] = {}
    for result, value in zip(results, values, strict=True):
        if value > 0:
            points.setdefault(result.row.line, []).append((result.row, value))
    return [
        Series(
            line,
            colors[of_line[0][0].label],
            np.array([row.x for row, _ in of_line]),
            np.array([value for _, value in of_line]),
        )
        for line, of_line in points.items()
    ]
