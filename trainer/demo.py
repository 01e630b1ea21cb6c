"""The main job: a real log, DARE and TWIN by two processes each, one table and one page."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from data.errors import InputError
from data.prepare import prepare
from data.sources.completejourney import CompleteJourney
from data.store import EventStore, numpy_columns, read_arrow
from torchx_specs.launch import run_local
from trainer.metrics import Predictions, paired_difference
from trainer.provenance import versions
from trainer.report.page import write_report
from trainer.tables import results_table, store_table

MODELS = ("dare", "twin")
REPORTED = (
    "auc", "auc_interval", "gauc", "logloss", "normalized_entropy", "calibration", "train_samples",
    "train_seconds", "samples_per_second", "loss_first", "loss_last",
)  # fmt: skip
"""What summary.json says of each model."""


def main(out: Path, store: Path, processes: int, seed: int, overrides: Sequence[str] = ()) -> int:
    """Prepares completejourney, trains DARE and its single-table twin, compares them on test.

    Returns the exit code.

    Args:
        out: folder of the two runs, ``summary.json`` and ``report.html``.
        store: event store; prepared if it is not there.
        processes: ranks of each training job.
        seed: of both trainings.
        overrides: further flags of both trainings.
    """
    if processes < 1:
        raise InputError(f"--processes must be at least 1, got {processes}.")
    console, begun = Console(), time.monotonic()
    _open_or_prepare(store, console)
    for model in MODELS:
        console.rule(f"{model}: {processes} processes")
        run = out / model
        code = run_local(
            [
                "train", model, "--data", str(store.absolute()), "--out", str(run.absolute()),
                "--seed", str(seed), "--replace", *overrides,
            ],
            processes,
            Path(".logs"),
        )  # fmt: skip
        if code:
            return code
    summary = write_comparison(out, store, processes)
    console.rule("DARE beside TWIN, test split")
    console.print(results_table(summary["models"]))
    difference, (low, high) = summary["difference"]["auc"], summary["difference"]["interval"]
    console.print(f"DARE − TWIN: AUC {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
    console.print(f"{time.monotonic() - begun:.0f} seconds. Report: {out / 'report.html'}")
    return 0


def _open_or_prepare(path: Path, console: Console) -> None:
    try:
        store = EventStore.open(path)
    except InputError:
        if path.exists():
            raise
        prepare(CompleteJourney(), path)
        store = EventStore.open(path)
    if store.info.source != CompleteJourney.name:
        raise InputError(
            f"{path} holds {store.info.source}, not completejourney. Give another --store."
        )
    console.print(store_table(dataclasses.asdict(store.info)))


def write_comparison(out: Path, store: Path, processes: int) -> dict[str, Any]:
    """Writes ``summary.json`` and ``report.html`` over the runs in ``out``; returns the summary."""
    info = EventStore.open(store).info
    runs = {model: json.loads((out / model / "summary.json").read_text()) for model in MODELS}
    difference = paired_difference(*(_predictions(out / model) for model in MODELS))
    summary = {
        "dataset": info.source,
        "events": info.events,
        "users": info.users,
        "requests": info.requests,
        "world_size": processes,
        "models": {model: {key: run[key] for key in REPORTED} for model, run in runs.items()},
        "difference": {"of": "dare - twin", "auc": difference.auc, "interval": difference.interval},
        "versions": versions(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(
        out / "report.html",
        [out / model for model in MODELS],
        title="DARE and its single-table twin on completejourney",
        differences={"dare − twin": difference},
    )
    return summary


def _predictions(run: Path) -> Predictions:
    batch: pa.RecordBatch = read_arrow(run / "predictions-test.arrow")
    return Predictions(**numpy_columns(batch))
