"""What the cells found, one record each, and what the rows make of them."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.run_folder import read_config
from trainer.sweep.cells import Cell
from trainer.sweep.compare import Comparison, Resampled, compare, resampled, standard_deviation
from trainer.sweep.jobs import read_attempts, write_text
from trainer.sweep.rows import Row, SweepTable

Record = dict[str, Any]
QUALITY = ("auc", "gauc", "logloss", "normalized_entropy", "calibration")
MEANS = (
    *(f"{split}_{name}" for split in ("test", "val") for name in QUALITY),
    "samples_per_second", "train_seconds", "cpu_seconds", "peak_memory", "table_bytes",
    "replica_recall",
)  # fmt: skip
"""What is averaged over the seeds of a row."""


def cell_record(cell: Cell) -> Record:
    """One line of ``results.csv``. What is not known is None.

    ``cpu_seconds``, user and system time of all the cell's processes, and ``peak_memory``, bytes
    of the largest of them, are over all ``attempts``; a cell that was resumed has done some steps
    twice, and where the end of one was not seen, since the sweep was killed, they are not known.
    """
    config, summary = read_config(cell.folder), _read(cell.folder / "summary.json")
    plan = _read(cell.folder / "plan.json")
    attempts = read_attempts(cell)
    costs = {
        name: [attempt.get(name) for attempt in attempts] for name in ("cpu_seconds", "peak_memory")
    }
    known = bool(attempts) and None not in costs["cpu_seconds"]
    validation = _validation(cell.folder, summary.get("best_step"))
    return {
        "row": cell.row.label,
        "seed": cell.seed,
        "experiment": cell.row.experiment,
        **{f"test_{name}": summary.get(name) for name in QUALITY},
        **{f"val_{name}": validation.get(name) for name in QUALITY},
        "best_step": summary.get("best_step"),
        "replica_recall": validation.get("replica_recall"),
        "train_samples": summary.get("train_samples"),
        "train_seconds": summary.get("train_seconds"),
        "samples_per_second": summary.get("samples_per_second"),
        "cpu_seconds": sum(costs["cpu_seconds"]) if known else None,
        "peak_memory": max(costs["peak_memory"]) if known else None,
        "attempts": len(attempts) or None,
        "table_bytes": sum(table["bytes"] for table in plan["tables"]),
        "processes": summary.get("world_size"),
        "flags": shlex.join(cell.flags),
        "commit": config.get("commit"),
        "data_fingerprint": cell.fingerprint,
    }


def _read(file: Path) -> Record:
    return json.loads(file.read_text())


def _validation(run: Path, step: int | None) -> Record:
    """The last evaluation of the checkpoint that was tested."""
    found: Record = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if (record["kind"], record.get("split"), record["step"]) == ("eval", "val", step):
            found = record
    return found


@dataclass(frozen=True)
class RowResult:
    """A row over its seeds."""

    row: Row
    seeds: tuple[int, ...]
    values: Mapping[str, np.ndarray]
    """(seeds,) of each of :data:`MEANS`; NaN where a cell does not know."""
    reference: str | None
    comparison: Comparison | None
    """None without a reference, or while the two have no seed in common."""

    def mean(self, name: str) -> float:
        """NaN where a seed does not know."""
        return float(self.values[name].mean())

    def std(self, name: str) -> float:
        """Over seeds; NaN for a single one."""
        return standard_deviation(self.values[name])

    def record(self) -> Record:
        """One line of ``table.csv``."""
        found: Record = {
            "row": self.row.label,
            "experiment": self.row.experiment,
            "line": self.row.line or None,
            "x": self.row.x,
            "seeds": len(self.seeds),
        }
        for name in MEANS:
            found |= {f"{name}_mean": self.mean(name), f"{name}_std": self.std(name)}
        c = self.comparison
        low_high = (math.nan, math.nan)
        by_request, by_user = (c.by_request, c.by_user) if c else (low_high, low_high)
        return found | {
            "reference": self.reference,
            "difference": c.auc if c else None,
            "request_low": by_request[0],
            "request_high": by_request[1],
            "user_low": by_user[0],
            "user_high": by_user[1],
            "difference_seed_std": c.seed_std if c else None,
            "difference_seeds": c.seeds if c else 0,
        }


def summarize(
    table: SweepTable, done: Sequence[Cell], records: Mapping[str, Record]
) -> list[RowResult]:
    """Rows that have a done cell, in the order of the table.

    Args:
        done: cells that are done.
        records: of each by its name.
    """
    by_row: dict[str, dict[int, Cell]] = {}
    for cell in done:
        by_row.setdefault(cell.row.label, {})[cell.seed] = cell
    auc = {cell.name: resampled(cell.folder, cell.resamples) for cell in done}
    results = []
    for row in (row for row in table.rows if row.label in by_row):
        cells = by_row[row.label]
        reference = table.reference_of(row)
        others = by_row.get(reference.label, {}) if reference else {}
        results.append(
            RowResult(
                row=row,
                seeds=tuple(sorted(cells)),
                values={
                    name: np.array(
                        [_number(records[cells[seed].name][name]) for seed in sorted(cells)]
                    )
                    for name in MEANS
                },
                reference=reference.label if reference else None,
                comparison=_compare(cells, others, auc),
            )
        )
    return results


def _compare(
    cells: Mapping[int, Cell], others: Mapping[int, Cell], auc: Mapping[str, Resampled]
) -> Comparison | None:
    common = sorted(cells.keys() & others.keys())
    if not common:
        return None
    return compare(*([auc[side[seed].name] for seed in common] for side in (cells, others)))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def write_csv(file: Path, records: Sequence[Record]) -> None:
    """Full precision; what is not known is empty."""
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({name: _cell(value) for name, value in record.items()})
    write_text(file, text.getvalue())


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
