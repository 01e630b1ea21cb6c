"""How far a run is, from the files that it writes: nothing is asked of the job, or kept from it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import InputError

StateName = Literal["running", "done", "stopped"]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What ``twofold status`` says of a run. None: not known, or not yet."""

    run: str
    experiment: str
    source: str
    """Of the store."""
    state: StateName
    """running: a job holds the folder's lock. done: it has been tested. stopped: neither, so
    ``--resume`` would go on with it."""
    doing: str | None = None
    """Of a running job: train, or the split that is evaluated."""
    evaluated_share: float | None = None
    """Of that split, from 0 to 1."""
    host: str | None = None
    process: int | None = None
    """Of rank 0."""
    silent_seconds: float | None = None
    """Since the job last wrote anything."""
    step: int = 0
    steps: int | None = None
    """Of the whole training; an early stop makes it fewer."""
    loss: float | None = None
    samples: int | None = None
    samples_per_second: float | None = None
    input_share: float | None = None
    """Of the time of the last steps, waiting for input."""
    memory: float | None = None
    """Bytes, of the rank that holds most."""
    validation: tuple[dict[str, float | None], ...] = ()
    """step, auc and logloss of each evaluation so far."""
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    """Seconds."""
    checkpoints: str | None = None
    """URL of the checkpoints, of which step and age are not known then; None: in the folder."""
    best_step: int | None = None
    """Of the checkpoint with the best validation AUC."""
    seconds_left: float | None = None
    """Of training, evaluations on the way included, at the pace since this job began."""
    test_auc: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return dataclasses.asdict(self)


def read_status(run: Path) -> RunStatus:
    """Reads ``RUN``; lines that the job is just writing are left for the next time.

    Raises:
        InputError: it is no run of ``twofold train``.
    """
    config = _read(run / "config.json")  # not read_config: that waits seconds for torch
    if not {"experiment", "config", "data"} <= config.keys():
        raise InputError(
            f"{run} is no run folder: it has no config.json, or a damaged one. Give the --out of "
            "twofold train or of twofold sweep."
        )
    if config.get("kind") == "topk":
        raise InputError(
            f"{run} is a run of twofold topk, which says nothing on its way but metrics.jsonl. "
            "Give a run of twofold train, or a folder of twofold sweep."
        )
    running = in_use(run)
    signs = _read(run / "progress.json")
    trained, evaluated = _last_records(run / "metrics.jsonl")
    summary = _read(run / "summary.json")
    step = max(trained.get("step", 0), signs.get("step", 0) if running else 0)
    steps = _steps(config)
    done = not running and summary.get("steps", -1) >= step
    position = _read(run / "checkpoints" / "last" / "position.json")
    return RunStatus(
        run=str(run),
        experiment=config["experiment"],
        source=config["data"].get("source", ""),
        state="running" if running else "done" if done else "stopped",
        **(_doing(run, signs, step, steps) if running else {}),
        step=step,
        steps=steps,
        **{
            name: trained.get(name)
            for name in ("loss", "samples", "samples_per_second", "input_share", "memory")
        },
        validation=evaluated,
        checkpoint_step=position.get("step"),
        checkpoint_age=_age(run / "checkpoints" / "last" / "position.json"),
        checkpoints=config.get("checkpoints"),
        best_step=position.get("best_step"),
        test_auc=summary.get("auc") if done else None,
    )


def read_sweep(folder: Path) -> list[RunStatus]:
    """Of the cells of a sweep that have begun, by name; those that are no trainings left out."""
    found = []
    for config in sorted((folder / "cells").glob("*/config.json")):
        try:
            found.append(read_status(config.parent))
        except InputError:  # a cell of topk or of single steps, or one that just begins
            continue
    return found


def in_use(folder: Path) -> bool:
    """Does a job hold the folder's lock (trainer/run_folder.py)?

    Asked by a shared lock that is given back at once; a job that begins just then tries again.
    """
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _steps(config: dict[str, Any]) -> int | None:
    """Of a whole training: that of data/loader.py, ceil(requests / global batch) an epoch."""
    try:
        settings = config["config"]
        batches = math.ceil(config["data"]["requests"]["train"] / settings["requests_per_batch"])
        return settings["epochs"] * batches
    except (KeyError, TypeError):
        return None


def _doing(run: Path, signs: dict[str, Any], step: int, steps: int | None) -> dict[str, Any]:
    """Of a running job; its first sign may be still to come."""
    silent = _age(run / "progress.json")
    began = _age(run / "config.json")
    if silent is None or began is None or silent > began:  # signs of a job before this one
        return {"silent_seconds": began}
    doing, share = signs["doing"], signs["done"] / max(1, signs["total"])
    if doing == "val" and share >= 1:
        doing = "train"  # again; its next sign comes with its next record
    taken = signs.get("step", 0) - signs.get("first_step", 0)
    left = None
    if taken and steps and doing != "test":
        left = max(0.0, signs["seconds_since_first_step"] / taken * (steps - step) - silent)
    return {
        "doing": doing,
        "evaluated_share": None if doing == "train" else share,
        "host": signs["host"],
        "process": signs["process"],
        "silent_seconds": silent,
        "seconds_left": left,
    }


def _last_records(
    file: Path,
) -> tuple[dict[str, Any], tuple[dict[str, float | None], ...]]:
    """The last record of training, and step, AUC and log loss of all evaluations."""
    last: dict[str, Any] = {}
    evaluations = []
    for line in _lines(file):
        record = _parsed(line)
        if record.get("kind") == "train":
            last = record
        elif record.get("kind") == "eval":
            evaluations.append({name: record.get(name) for name in ("step", "auc", "logloss")})
    return last, tuple(evaluations)


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open() as lines:
            yield from lines
    except FileNotFoundError:
        return


def _read(file: Path) -> dict[str, Any]:
    """{} where there is none, or it was just being replaced."""
    try:
        return _parsed(file.read_text())
    except OSError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _age(file: Path) -> float | None:
    """Seconds since it was written; 0 where clocks disagree."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None
