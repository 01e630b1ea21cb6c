"""The table of a sweep for people: ``table.md`` and a self-contained ``report.html``."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import formats
from trainer.doctor.facts import usable_cores
from trainer.provenance import versions
from trainer.report.figures import COLORS, Series
from trainer.report.sections import Panel
from trainer.report.templates import environment
from trainer.sweep import pictures
from trainer.sweep.cells import Cell
from trainer.sweep.jobs import write_text
from trainer.sweep.page import PAGE
from trainer.sweep.pictures import Dot
from trainer.sweep.results import Record, RowResult, summarize
from trainer.sweep.rows import SweepTable

HEADINGS = (
    "row", "seeds", "test AUC", "test GAUC", "test log loss", "reference", "AUC difference",
    "95 % by requests", "95 % by users", "sd over seeds", "val. AUC", "samples/s", "CPU s",
    "tables",
)  # fmt: skip
REPLICA_HEADING = "found in the copy"
"""Only of tables with rows whose searches read a copy of the keys."""
NOTES = (
    "Mean ± standard deviation over seeds. The difference is the mean over seeds of the paired "
    "difference of test AUC to the reference; its intervals resample whole requests, or whole "
    "users, the same ones for every model and seed: they say how much it owes to who was in the "
    "split, for these trainings. How much another seed would move a single difference is its "
    "standard deviation over seeds.",
    "Validation AUC chose each checkpoint. Samples per second and CPU seconds (all processes of a "
    "cell, evaluation included) are of this machine, with as many cells at once as were asked "
    "for; they are empty where a cell's end was not seen.",
)


@dataclass(frozen=True)
class Page:
    """What a table's results say, for people and for programs."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Texts below the headings; the first of each is the row's label."""
    panels: Sequence[Panel]
    notes: Sequence[str]
    records: Sequence[Record]
    """Lines of ``table.csv``."""


def write_reports(
    out: Path,
    name: str,
    table: SweepTable,
    page: Page,
    records: Sequence[Record],
    failed: Sequence[str],
    command: Sequence[str],
) -> None:
    """Writes both files, each at once."""
    origin = provenance(records, command)
    write_text(out / "table.md", _markdown(name, table, page, failed, origin))
    there = {row[0] for row in page.rows}
    html = (
        environment()
        .from_string(PAGE)
        .render(
            name=name,
            table=table,
            headings=page.headings,
            rows=page.rows,
            missing=[row.label for row in table.rows if row.label not in there],
            failed=failed,
            panels=page.panels,
            notes=page.notes,
            origin=origin,
        )
    )
    write_text(out / "report.html", html)


def training_page(table: SweepTable, done: Sequence[Cell], records: Mapping[str, Record]) -> Page:
    """Of a table of trainings.

    Args:
        done: cells that are done.
        records: of each by its name.
    """
    results = summarize(table, done, records)
    rows = [text_row(result) for result in results]
    headings: tuple[str, ...] = HEADINGS
    if np.isfinite([result.mean("replica_recall") for result in results]).any():
        headings += (REPLICA_HEADING,)
        for row, result in zip(rows, results, strict=True):
            row.append(formats.decimal(result.mean("replica_recall")))
    return Page(
        headings, rows, _panels(table, results), NOTES, [result.record() for result in results]
    )


def text_row(result: RowResult) -> list[str]:
    """The cells of a row, in the order of :data:`HEADINGS`."""
    c = result.comparison
    return [
        result.row.label,
        str(len(result.seeds)),
        *(_mean_std(result, f"test_{name}") for name in ("auc", "gauc", "logloss")),
        result.reference or formats.MISSING,
        _unless(c is None, lambda: formats.signed(c.auc) + _fewer_seeds(result)),
        _unless(c is None, lambda: _signed_interval(c.by_request)),
        _unless(c is None, lambda: _signed_interval(c.by_user)),
        _unless(c is None, lambda: formats.decimal(c.seed_std)),
        _mean_std(result, "val_auc"),
        formats.count(result.mean("samples_per_second")),
        formats.count(result.mean("cpu_seconds")),
        formats.size(result.mean("table_bytes")),
    ]


def _unless(missing: bool, text: Any) -> str:
    return formats.MISSING if missing else text()


def _fewer_seeds(result: RowResult) -> str:
    """Says so where the reference lacks some of the row's seeds."""
    common = result.comparison.seeds if result.comparison else 0
    return "" if common == len(result.seeds) else f" (of {common} seeds)"


def _mean_std(result: RowResult, name: str) -> str:
    mean, std = formats.decimal(result.mean(name)), formats.decimal(result.std(name))
    return mean if std == formats.MISSING else f"{mean} ± {std}"


def _signed_interval(bounds: tuple[float, float]) -> str:
    low, high = map(formats.signed, bounds)
    return formats.MISSING if formats.MISSING in (low, high) else f"{low} to {high}"


def provenance(records: Sequence[Record], command: Sequence[str]) -> Mapping[str, str]:
    """What is needed to get the table again."""
    commits = sorted({str(record["commit"]) for record in records})
    stores = sorted({record["data_fingerprint"] for record in records} - {None})
    return {
        "Command": shlex.join(command),
        "Commit": ", ".join(commits),
        **({"Data fingerprint": ", ".join(stores)} if stores else {}),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "Hardware": hardware(),
    }


def hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor, and the cores that may be used."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    cores = usable_cores()
    return f"{model}, {cores} core{'s' if cores > 1 else ''}"


def _markdown(
    name: str,
    table: SweepTable,
    page: Page,
    failed: Sequence[str],
    origin: Mapping[str, str],
) -> str:
    ruler = ["---", *["---:"] * (len(page.headings) - 1)]
    lines = [f"# {name}", "", table.sentence, "", _line(page.headings), _line(ruler)]
    lines += [_line(row) for row in page.rows]
    lines += ["", *(f"{note}\n" for note in page.notes)]
    if failed:
        lines += [f"**Failed cells, left out: {', '.join(failed)}.**", ""]
    lines.append("; ".join(f"{key}: `{value}`" for key, value in origin.items()))
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _panels(table: SweepTable, results: Sequence[RowResult]) -> list[Panel]:
    known = [result for result in results if np.isfinite(result.values["test_auc"]).all()]
    if not known:
        return []
    colors = colors_of(table)
    panels = []
    if any(result.row.x is not None for result in known):
        series = _series(known, colors)
        panels.append(
            Panel(
                f"Test AUC over {table.axis}",
                pictures.lines(series, table.axis, f"Test AUC over {table.axis}"),
                "Mean over seeds; the band is one standard deviation over seeds either way.",
            )
        )
    compared = [result for result in known if result.comparison]
    if compared:
        panels.append(
            Panel(
                "Difference of test AUC to the reference",
                pictures.dots(
                    [_difference(result, known, colors) for result in compared],
                    "Difference of test AUC of each row to its reference, with intervals",
                    signed=True,
                ),
                "Dot: mean over seeds. Ticks: single seeds. Thick line: 95 % interval by requests, "
                "thin line: by users.",
            )
        )
    panels.append(
        Panel(
            "Test AUC",
            pictures.dots(
                [_auc(result, colors) for result in known], "Test AUC of each row", signed=False
            ),
            "Dot: mean over seeds. Ticks: single seeds.",
        )
    )
    return panels


def colors_of(table: SweepTable) -> dict[str, int]:
    """Of each row: that of its line, where there are lines."""
    groups = list(dict.fromkeys(row.line for row in table.rows))
    return {row.label: groups.index(row.line) % COLORS for row in table.rows}


def _series(results: Sequence[RowResult], colors: Mapping[str, int]) -> list[Series]:
    series = []
    for line in dict.fromkeys(result.row.line for result in results if result.row.x is not None):
        points = sorted((r for r in results if r.row.line == line), key=lambda r: r.row.x or 0.0)
        x = np.array([point.row.x for point in points], dtype=float)
        y = np.array([point.mean("test_auc") for point in points])
        std = np.array([point.std("test_auc") for point in points])
        band = np.stack([y - std, y + std]) if np.isfinite(std).all() else None
        series.append(Series(line, colors[points[0].row.label], x, y, band))
    return series


def _difference(result: RowResult, results: Sequence[RowResult], colors: Mapping[str, int]) -> Dot:
    comparison = result.comparison
    assert comparison is not None
    other = next(r for r in results if r.row.label == result.reference)
    by_seed = (dict(zip(r.seeds, r.values["test_auc"], strict=True)) for r in (result, other))
    ours, theirs = by_seed
    seeds = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    return Dot(
        result.row.label,
        colors[result.row.label],
        comparison.auc,
        seeds,
        comparison.by_request,
        comparison.by_user,
    )


def _auc(result: RowResult, colors: Mapping[str, int]) -> Dot:
    label = result.row.label
    return Dot(label, colors[label], result.mean("test_auc"), result.values["test_auc"])
