"""The folder of a run: claimed by one job, its files written whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError
from torch.distributed.checkpoint.api import CheckpointException

from data.errors import InputError
from trainer.experiment import Experiment

RUN_FILES = (
    "plan.json", "metrics.jsonl", "analysis.json", "summary.json", "report.html",
    "predictions-test.arrow", "evaluation-*.json", "analysis-*.json", "analysis-*.html",
    "gradients.json", "progress.json", "profile", "checkpoints", "tensorboard",
    "attempts.jsonl", ".step", "batch-*.arrow",
    "config.json",  # last: without it the rest would not be known for a run
)  # fmt: skip
KEPT = "Complete checkpoints are kept; make room and go on with --resume."
FULL = 2**16
"""A disk with fewer bytes left is full."""
MAY_CHANGE = (
    "epochs", "patience", "evaluate_every", "evaluations_per_epoch", "log_every", "bootstrap",
    "sharding",
)  # fmt: skip
"""Settings that a resumed run may have other than before."""


class RunFolder:
    """Rank 0's view of ``RUN/``; the layout is in docs/architecture.md."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIO | None = None
        self._made = False

    @property
    def started(self) -> bool:
        """Has a run begun here?"""
        return (self.path / "config.json").exists()

    def claim(
        self,
        config: dict[str, Any],
        *,
        resume: bool,
        replace: bool,
        clear_elsewhere: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the folder for this job until it ends.

        Args:
            config: what config.json will hold.
            resume: a run there is continued.
            replace: a run there is deleted.
            clear_elsewhere: with ``replace``, deletes what lies where this run's checkpoints will,
                outside of the folder.

        Raises:
            InputError: it is in use, holds a run that is not to be resumed, or another one.
        """
        self._made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise InputError(f"The run folder {self.path} cannot be made: {error}") from error
        try:
            _lock(self._lock)
        except BlockingIOError as error:
            raise InputError(
                f"{self.path} is in use by another job. Wait for it, or give another --out."
            ) from error
        with disk_errors(self.path, "Make room and start again."):
            if self.started and not replace:
                self._check_same_run(config, resume)
            elif not self.started and self._has_files():
                raise InputError(f"{self.path} is not empty and holds no run. Give another --out.")
            if replace:
                # before config.json is the new run's: with it --resume takes what is elsewhere
                clear_elsewhere()
                self._clear()
            self.write("config.json", config)

    def _has_files(self) -> bool:
        """Others than .lock and what a kill left of a file that was being written."""
        return not all(entry.name.startswith(".") for entry in self.path.iterdir())

    def _check_same_run(self, config: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise InputError(
                f"{self.path} holds a run already. Give another --out, continue it with --resume, "
                "or start over with --replace."
            )
        before = read_config(self.path)
        old, new = leaves(resolved(before)), leaves(config["config"])
        changed = [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key.split(".")[0] not in MAY_CHANGE
        ]
        if before["data"]["fingerprint"] != config["data"]["fingerprint"]:
            changed.append("data: another store")
        if changed:
            raise InputError(
                f"{self.path} cannot be resumed with other settings ({'; '.join(changed)}). "
                f"Only {', '.join(MAY_CHANGE)} may change; else give another --out."
            )

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file at once: readers see the old one or the new one."""
        temporary = self.path / f".{name}"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.path / name)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops lines of metrics.jsonl that a resumed run will write again, or that were cut."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        lines = [line for line in file.read_text().splitlines() if _step(line) <= step]
        temporary = self.path / ".metrics.jsonl"
        temporary.write_text("".join(f"{line}\n" for line in lines))
        temporary.replace(file)

    def abandon(self) -> None:
        """After a failure: a run leaves nothing behind but checkpoints and batches to look at."""
        kept = (self.path / "checkpoints" / "last").exists() or any(self.path.glob("batch-*.arrow"))
        if self._lock is None or kept:
            return
        if self._made:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self.started:
            with contextlib.suppress(OSError):  # what went wrong before is what counts
                self._clear()

    def _clear(self) -> None:
        """Deletes what a run writes, and nothing else that may lie there."""
        for pattern in RUN_FILES:
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lock(file: TextIO) -> None:
    """Takes the lock, of which the kernel lets go however the process ends. Whoever asks whether
    a job holds it (trainer/status.py) does so for an instant.
    """
    for pause in (0.05, 0.1, 0.2):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(pause)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def disk_errors(
    folder: Path,
    way_out: str = KEPT,
) -> Iterator[None]:
    """Turns a full or read-only disk into an InputError.

    Args:
        folder: of the run.
        way_out: what is kept, and what to do.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        codes = [c.errno for c in _causes(error) if isinstance(c, OSError)]
        # the first rank may have removed the folder already
        there = next(
            path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
        )
        free = shutil.disk_usage(there).free
        if isinstance(error, CheckpointException) and free < FULL:
            # torch.save hides why it failed behind its failure to end the file
            codes.append(errno.ENOSPC)
        code = next((code for code in codes if code in _DISK_ERRORS), None)
        if code is None:
            raise
        raise InputError(
            f"{folder} could not be written to: {os.strerror(code)} ({free / 2**20:,.0f} MiB "
            f"free). {way_out}"
        ) from error


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, CheckpointException):  # of any rank; DCP does not chain them
            for failure, _ in error.failures.values():
                yield from _causes(failure)
        error = error.__cause__ or error.__context__


def _step(line: str) -> float:
    """Of a line of metrics.jsonl; infinite where a killed job cut it."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def read_config(run: Path) -> dict[str, Any]:
    """``config.json`` of a run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = run / "config.json"
    try:
        content = json.loads(file.read_text())
        if not (isinstance(content, dict) and {"experiment", "config", "data"} <= content.keys()):
            raise ValueError("it does not say experiment, config and data")
        return content
    except FileNotFoundError as error:
        raise InputError(
            f"{run} is no run folder: it has no config.json. Give the --out of a run."
        ) from error
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def checkpoint_url(run: Path) -> str:
    """Where a run keeps its checkpoints if not in its folder; "" else, and where no run is."""
    try:
        return json.loads((run / "config.json").read_text()).get("checkpoints", "")
    except (OSError, ValueError, AttributeError):
        return ""


def read_experiment(config: dict[str, Any]) -> Experiment:
    """The experiment that a ``config.json`` describes."""
    if config.get("kind") == "topk":
        raise InputError(
            "This is a run of twofold topk; give one of twofold train. twofold topk compare "
            "compares runs of topk."
        )
    try:
        return TypeAdapter(Experiment).validate_python(config["config"])
    except ValidationError as error:
        raise InputError(
            f"config.json does not describe an experiment of this version: {error}"
        ) from error


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a ``config.json`` as this version writes them: those that an older version
    lacked have their defaults, which leave a run as it was.
    """
    return TypeAdapter(Experiment).dump_python(read_experiment(config), mode="json")


def leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"top_k": 20}}`` -> ``{"model.top_k": 20}``."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
