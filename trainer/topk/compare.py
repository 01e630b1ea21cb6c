"""Several top-K runs side by side: means over seeds, paired differences over users."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data.errors import InputError
from data.store import numpy_columns, read_arrow
from trainer import formats
from trainer.run_folder import read_config
from trainer.tables import plain_table
from trainer.topk.metrics import METRICS, bootstrap_intervals

BOOTSTRAP = 1000
SHOWN = {"precision@10": "P@10", "recall@20": "R@20", "ndcg@20": "NDCG@20"}
"""Columns of the terminal; files hold all metrics."""


@dataclass(frozen=True)
class Run:
    """A run that is done."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    user: np.ndarray
    """(n,)."""
    values: np.ndarray
    """(n, M), in the order of METRICS."""

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises InputError if it is no finished run of twofold topk."""
        config = read_config(path)
        try:
            summary = json.loads((path / "summary.json").read_text())
            columns = numpy_columns(read_arrow(path / "predictions-test.arrow"), exclude=("items",))
            values = np.stack([columns[name] for name in METRICS], axis=1)
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} is no finished run of twofold topk ({error!r}). Give run folders of "
                "twofold topk that have a summary.json."
            ) from error
        return cls(path, config, summary, columns["user"], values)

    @property
    def settings(self) -> str:
        """All but the seed: runs of the same settings are one row."""
        # chunks and resamples change no list
        settings = self.config["config"] | dict.fromkeys(("seed", "users_chunk", "bootstrap"))
        return json.dumps([self.config["experiment"], settings], sort_keys=True)


@dataclass(frozen=True)
class Row:
    """Runs of one setting."""

    label: str
    runs: Sequence[Run]

    @property
    def per_user(self) -> np.ndarray:
        """(n, M) mean over the seeds."""
        return np.mean([run.values for run in self.runs], axis=0)

    def record(self, reference: Row) -> dict[str, Any]:
        """A line of the CSV: seeds, then mean, interval, deviation and difference of each metric;
        intervals resample users, the same ones in every row.
        """
        means = np.array([run.values.mean(axis=0) for run in self.runs])
        deviations = means.std(axis=0, ddof=1) if len(means) > 1 else [None] * len(METRICS)
        intervals = bootstrap_intervals(self.per_user, BOOTSTRAP)
        differences = self.per_user - reference.per_user
        apart = bootstrap_intervals(differences, BOOTSTRAP)
        record: dict[str, Any] = {
            "model": self.label,
            "candidates": self.runs[0].summary["candidates"],
            "seeds": len(self.runs),
            "users": len(self.per_user),
            "parameters": self.runs[0].summary["parameters"],
            "train_seconds": float(np.mean([run.summary["train_seconds"] for run in self.runs])),
            "best_epoch": float(np.mean([run.summary["best_epoch"] for run in self.runs])),
        }
        for place, name in enumerate(METRICS):
            record |= {
                name: float(means[:, place].mean()),
                f"{name}_low": intervals[place][0],
                f"{name}_high": intervals[place][1],
                f"{name}_sd": deviations[place],
                f"{name}_difference": float(differences[:, place].mean()),
                f"{name}_difference_low": apart[place][0],
                f"{name}_difference_high": apart[place][1],
            }
        return record


def compare_runs(paths: Sequence[Path], out: Path | None = None) -> list[dict[str, Any]]:
    """Prints a table, and writes ``topk.csv`` and ``topk.md`` to ``out`` if it is given.

    Raises:
        InputError: no runs, unfinished ones, or runs of other data or candidates.
    """
    if not paths:
        raise InputError("Which runs? twofold topk compare RUN RUN ...")
    rows = _rows([Run.read(path) for path in paths])
    records = [row.record(rows[0]) for row in rows]
    console = Console()
    console.print(_terminal_table(records), highlight=False)
    if out is not None:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file. Give a folder as --out.")
        out.mkdir(parents=True, exist_ok=True)
        (out / "topk.csv").write_text(_csv(records))
        (out / "topk.md").write_text(_markdown(records, rows))
        console.print(f"Written: {out / 'topk.csv'}, {out / 'topk.md'}", highlight=False)
    return records


def _rows(runs: Sequence[Run]) -> list[Row]:
    first = runs[0]
    for run in runs[1:]:
        same_data = run.config["data"]["fingerprint"] == first.config["data"]["fingerprint"]
        same_candidates = run.summary["candidates"] == first.summary["candidates"]
        if not (same_data and same_candidates and np.array_equal(run.user, first.user)):
            raise InputError(
                f"{run.path} cannot be compared with {first.path}: another store or other "
                "--candidates. Compare runs of one store and the same candidates."
            )
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    for group in groups.values():
        seeds = [run.config["config"]["seed"] for run in group]
        if len({*seeds}) < len(seeds):
            raise InputError(
                f"{', '.join(str(run.path) for run in group)} have seeds {seeds}: one training "
                "twice is no second seed. Leave one out."
            )
    names = [group[0].config["experiment"] for group in groups.values()]
    return [
        # a model with several settings is known by its first folder
        Row(name if names.count(name) == 1 else f"{name} ({group[0].path.name})", group)
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _cells(record: dict[str, Any], metrics: Iterable[str]) -> list[str]:
    return [formats.decimal(record[name]) for name in metrics]


def _difference(record: dict[str, Any], metric: str) -> tuple[str, str]:
    low, high = record[f"{metric}_difference_low"], record[f"{metric}_difference_high"]
    return (
        formats.signed(record[f"{metric}_difference"]),
        f"{formats.signed(low)} to {formats.signed(high)}",
    )


def _terminal_table(records: Sequence[dict[str, Any]]) -> Table:
    first = records[0]
    table = plain_table(
        f"Full ranking of the catalogue, {formats.count(first['users'])} users, "
        f"candidates: {first['candidates']}"
    )
    table.caption = f"Difference: of NDCG@20 to {first['model']}, 95 % over users."
    table.add_column("model", no_wrap=True)
    for name in ("seeds", *SHOWN.values(), "difference", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        difference = _difference(record, "ndcg@20") if record is not first else ("–", "–")
        cells = _cells(record, SHOWN)
        table.add_row(record["model"], str(record["seeds"]), *cells, *difference)
    return table


def _csv(records: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _markdown(records: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    header = ["model", "seeds", *METRICS, "NDCG@20, 95 %", "sd over seeds", "difference", "95 %"]
    lines = [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
    ]
    for record in records:
        interval = formats.interval((record["ndcg@20_low"], record["ndcg@20_high"]))
        difference = _difference(record, "ndcg@20") if record is not records[0] else ("–", "–")
        cells = [
            record["model"], str(record["seeds"]), *_cells(record, METRICS), interval,
            formats.decimal(record["ndcg@20_sd"]), *difference,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    commands = [" ".join(run.config["command"]) for row in rows for run in row.runs]
    commits = sorted({run.config["commit"] or "?" for row in rows for run in row.runs})
    data = rows[0].runs[0].config["data"]
    versions = ", ".join(f"{name} {v}" for name, v in rows[0].runs[0].config["versions"].items())
    return "\n".join(
        [
            "# topk", "",
            f"Full ranking of the catalogue for {formats.count(records[0]['users'])} users of "
            f"{data['source']}, candidates: {records[0]['candidates']}.", "",
            *lines, "",
            "Means over users and seeds. The interval and the difference to the first row resample "
            "users, the same ones for every row: they say what is owed to who was in the split, "
            "for these trainings.", "",
            f"Data fingerprint: `{data['fingerprint']}`; Commit: `{', '.join(commits)}`; "
            f"Versions: `{versions}`", "",
            "```", *commands, "```", "",
        ]
    )  # fmt: skip
