"""Cells: which jobs a table asks for, and how far each one is."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import TypeAdapter

from data.errors import InputError
from data.store import EventStore
from trainer.commands.parsing import parse
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.provenance import commit
from trainer.run_folder import read_config, resolved
from trainer.status import in_use
from trainer.sweep.rows import Row, SweepTable

StateName = Literal["done", "running", "begun", "missing", "other"]


@dataclass(frozen=True)
class Cell:
    """One row with one seed: a job in a folder of its own."""

    row: Row
    seed: int
    out: Path
    """Folder of the sweep."""
    flags: tuple[str, ...]
    """All of the job, seed included."""
    config: dict[str, Any]
    """What ``config.json`` must say of it."""
    data: Path | None
    """The store, where the job reads one."""
    fingerprint: str | None
    """Of the store."""

    @property
    def name(self) -> str:
        """``dare-seed1``."""
        return f"{self.row.label}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it leaves ``config.json``, ``summary.json`` and more."""
        return self.out / "cells" / self.name

    @property
    def log(self) -> Path:
        """What its processes print. Beside its folder: ``train`` wants that one empty."""
        return self.out / "logs" / f"{self.name}.log"

    @property
    def attempts(self) -> Path:
        """What each start of it cost, see :mod:`trainer.sweep.jobs`."""
        return self.log.with_suffix(".attempts.json")

    @property
    def resamples(self) -> Path:
        """Its resampled AUCs, see :mod:`trainer.sweep.compare`."""
        return self.out / "resamples" / f"{self.name}.json"

    @staticmethod
    def settings_of(row: Row, flags: Sequence[str]) -> Any:
        """The frozen dataclass that the flags make, whose ``seed`` is the cell's.

        Raises:
            InputError: a value that it refuses.
        """
        raise NotImplementedError

    def command(self, processes: int, how: str = "--resume") -> list[str]:
        """Does the job; ``how`` is --resume or --replace, for what goes on where it stopped."""
        raise NotImplementedError

    @property
    def resumes(self) -> bool:
        """Would it go on where it stopped, if it were started now?"""
        return (self.folder / "config.json").exists()

    def resolved(self, config: dict[str, Any]) -> dict[str, Any]:
        """The settings that a ``config.json`` tells of, as this version writes them."""
        return config["config"]

    def complete(self) -> bool:
        """Is the job done? The summary is written at once, after all else."""
        try:
            json.loads((self.folder / "summary.json").read_text())
        except (OSError, ValueError):
            return False
        return True


class Training(Cell):
    """A run of ``twofold train``."""

    @staticmethod
    def settings_of(row: Row, flags: Sequence[str]) -> Experiment:
        """See :func:`experiment_of`."""
        return experiment_of(row, flags)

    def command(self, processes: int, how: str = "--resume") -> list[str]:
        """Trains the cell; with ``--resume`` from its last checkpoint, if it has one."""
        assert self.data is not None
        launcher = ["-m", "trainer.main"]
        if processes > 1:
            ranks = ["--standalone", "--nproc-per-node", str(processes)]
            launcher = ["-m", "torch.distributed.run", *ranks, *launcher]
        folders = ["--data", str(self.data.absolute()), "--out", str(self.folder.absolute())]
        return [sys.executable, *launcher, "train", self.row.experiment, *folders, *self.flags, how]

    @property
    def resumes(self) -> bool:
        """Would it go on where it stopped, if it were started now?"""
        return (self.folder / "config.json").exists()

    def resolved(self, config: dict[str, Any]) -> dict[str, Any]:
        """See :func:`trainer.run_folder.resolved`."""
        return resolved(config)

    def complete(self) -> bool:
        """Has the run been tested?"""
        return super().complete() and (self.folder / "predictions-test.arrow").exists()


class State(NamedTuple):
    """How far a cell is."""

    name: StateName
    differences: tuple[str, ...] = ()
    """other: what the run that lies there was made with, beside what is wanted."""
    notes: tuple[str, ...] = ()
    """What differs and does no harm: the commit."""


def plan_cells(
    make: type[Cell],
    table: SweepTable,
    data: Path | None,
    out: Path,
    seeds: int,
    overrides: Sequence[str] = (),
    patterns: Sequence[str] = (),
) -> list[Cell]:
    """All cells of a table, the first seed of every row first: a table is whole early.

    Rows that ``patterns`` leave out are there if an earlier sweep has begun them.

    Args:
        make: what the table's cells are.

    Raises:
        InputError: no such store, or overrides that do not fit.
    """
    fingerprint = EventStore.open(data).info.fingerprint if data else None
    chosen = chosen_labels(table, patterns)
    _check_overrides([row for row in table.rows if row.label in chosen], overrides)
    plans = []
    for row in table.rows:
        if row.label in chosen or any((out / "cells").glob(f"{row.label}-seed*")):
            flags = (*table.flags, *overrides, *row.flags)
            plans.append((row, flags, make.settings_of(row, flags)))
    return [
        make(
            row=row,
            seed=seed,
            out=out,
            flags=(*flags, "--seed", str(seed)),
            config=_dumped(dataclasses.replace(settings, seed=seed)),
            data=data,
            fingerprint=fingerprint,
        )
        for seed in range(1, seeds + 1)
        for row, flags, settings in plans
    ]


def _dumped(settings: Any) -> dict[str, Any]:
    """As JSON has it."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def experiment_of(row: Row, flags: Sequence[str]) -> Experiment:
    """What ``twofold train`` would make of the flags.

    Raises:
        InputError: a value that a config refuses.
        SystemExit: unknown flags, told to the user.
    """
    if row.experiment not in EXPERIMENTS:
        raise InputError(
            f"Row {row.label} asks for the experiment {row.experiment!r}; there are "
            f"{', '.join(EXPERIMENTS)}. Leave the row out with --rows."
        )
    default = EXPERIMENTS[row.experiment]()

    def parser(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
    ) -> Experiment:
        return experiment

    try:
        return parse(parser, f"train {row.experiment}", flags)
    except InputError as error:
        raise InputError(f"Row {row.label}: {error}") from error


def chosen_labels(table: SweepTable, patterns: Sequence[str]) -> set[str]:
    """Labels that match a shell pattern; all without patterns.

    Raises:
        InputError: a pattern that matches none.
    """
    labels = [row.label for row in table.rows]
    for pattern in patterns:
        if not fnmatch.filter(labels, pattern):
            raise InputError(f"--rows {pattern} names no row. There are: {', '.join(labels)}.")
    return {label for pattern in patterns or ("*",) for label in fnmatch.filter(labels, pattern)}


def state_of(cell: Cell) -> State:
    """How far a cell is, read from its run folder."""
    folder = cell.folder
    if not (folder / "config.json").exists():
        return State("running" if in_use(folder) else "missing")
    try:
        config = read_config(folder)
        there = {"experiment": config["experiment"], "config": cell.resolved(config)}
    except InputError as error:
        return State("other", (str(error),))
    wanted = {
        "experiment": cell.row.experiment,
        "config": cell.config,
        "data": {"fingerprint": cell.fingerprint},
    }
    there["data"] = {"fingerprint": config["data"].get("fingerprint")}
    if differences := tuple(_changes(there, wanted)):
        return State("other", differences)
    now, notes = _commit(), ()
    if config.get("commit") != now:
        notes = (f"commit: {config.get('commit')} -> {now}",)
    if cell.complete():
        return State("done", notes=notes)
    return State("running" if in_use(folder) else "begun", notes=notes)


_commit = functools.cache(commit)


def _changes(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``config.model.top_k: 20 -> 50`` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _changes(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: {before} -> {now}"


def _check_overrides(rows: Sequence[Row], overrides: Sequence[str]) -> None:
    """Refuses the seed, and what would have no effect since a row sets it."""
    ours = {_flag(word): row.label for row in rows for word in row.flags if word[:2] == "--"}
    for flag in (_flag(word) for word in overrides if word.startswith("--")):
        if flag == "--seed":
            raise InputError("Seeds are those of --seeds: leave --seed out of the overrides.")
        if flag in ours:
            raise InputError(
                f"{flag} is set by rows of this table ({ours[flag]}): leave it out of the "
                "overrides, or choose other rows with --rows."
            )


def _flag(word: str) -> str:
    """``--history_length=200`` -> ``--history-length``."""
    return word.partition("=")[0].replace("_", "-")
