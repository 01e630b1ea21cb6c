"""A sweep from its table to its report.

DIR/sweep.json            table, overrides and store of the last call
DIR/cells/<row>-seed<k>/  run folders, without checkpoints once they are done; or measurements
DIR/logs/                 what each cell printed, and what each start of it cost
DIR/resamples/            resampled AUCs of each cell
DIR/results.csv           one line per cell
DIR/table.csv, table.md, report.html      one line per row
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from torchx_specs.ending import signal_name
from trainer import formats
from trainer.progress import Display
from trainer.sweep.cells import Cell, State, chosen_labels, plan_cells, state_of
from trainer.sweep.jobs import Attempt, run_cells, write_json
from trainer.sweep.kinds import KINDS
from trainer.sweep.report import write_reports
from trainer.sweep.results import Record, write_csv
from trainer.sweep.rows import SweepTable
from trainer.sweep.tables import TABLES

LOG_LINES, TORCHRUN_LINES = 12, 45
"""Of a failed cell's log that are shown; torchrun's own words come after the reason."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for."""

    table: str
    out: Path
    data: Path | None = None
    """Of tables of trainings."""
    seeds: int = 5
    jobs: int = 1
    processes: int = 1
    rows: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    replace: bool = False
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}.")


class Sweep:
    """The cells of one call."""

    def __init__(self, order: Order, command: Sequence[str]) -> None:
        """Reads the folder and changes nothing.

        Args:
            order: what was asked for.
            command: for the report.

        Raises:
            InputError: no such store or row, overrides that do not fit, or a folder of another
                kind.
        """
        self.order, self.command = order, command
        self.table: SweepTable = TABLES[order.table]
        self.kind = KINDS[self.table.kind]
        check_folder(order)
        self.cells = plan_cells(
            self.kind.cell,
            self.table,
            order.data,
            order.out,
            order.seeds,
            order.overrides,
            order.rows,
        )
        chosen = chosen_labels(self.table, order.rows)
        self.chosen = [cell for cell in self.cells if cell.row.label in chosen]
        self.states = {cell.name: state_of(cell) for cell in self.cells}
        self.failed: dict[str, Attempt] = {}
        self._records: dict[str, Record] = {}

    def list(self) -> None:
        """Prints every chosen cell: its state, its name and its command."""
        for cell in self.chosen:
            state = self.states[cell.name]
            print(f"{state.name:<8}{cell.name}  {shlex.join(self._command(cell))}")
            for line in (*state.differences, *state.notes):
                print(f"        {line}")

    def main(self) -> int:
        """Runs what is not done, writes the results, returns the exit code."""
        self._check_states()
        with locked(self.order.out):
            self._remember()
            missing = [c for c in self.chosen if self.states[c.name].name != "done"]
            with Display(shown=True) as display:
                self._tell_notes(display, len(missing))
                self._run(missing, display)
            self.write_results()
        return self._end()

    def report(self) -> int:
        """Writes the results of what is done, whether or not a sweep is at work."""
        if not (self.order.out / "sweep.json").exists():
            raise InputError(f"{self.order.out} holds no sweep. Run it without --report first.")
        self.write_results()
        return self._end()

    def write_results(self) -> None:
        """Writes every file that tells of the done cells."""
        done = [cell for cell in self.cells if self.states[cell.name].name == "done"]
        for cell in done:
            if cell.name not in self._records:
                self._records[cell.name] = self.kind.record(cell)
        order = {row.label: index for index, row in enumerate(self.table.rows)}
        done.sort(key=lambda cell: (order[cell.row.label], cell.seed))
        records = [self._records[cell.name] for cell in done]
        page = self.kind.page(self.table, done, self._records)
        out = self.order.out
        write_csv(out / "results.csv", records)
        write_csv(out / "table.csv", page.records)
        write_reports(
            out, self.order.table, self.table, page, records, list(self.failed), self.command
        )

    def _command(self, cell: Cell) -> list[str]:
        other = self.states[cell.name].name == "other"
        return cell.command(self.order.processes, "--replace" if other else "--resume")

    def _check_states(self) -> None:
        """Refuses to go on over cells of other settings or data, or that another job trains."""
        states = {cell.name: self.states[cell.name] for cell in self.chosen}
        if running := [name for name, state in states.items() if state.name == "running"]:
            raise InputError(
                f"{', '.join(running)} of {self.order.out} is being made by another job. "
                "Wait for it, or give another --out."
            )
        others = {name: state for name, state in states.items() if state.name == "other"}
        if others and not self.order.replace:
            name, state = next(iter(others.items()))
            raise InputError(
                f"{len(others)} of {len(states)} cells in {self.order.out} were made otherwise; "
                f"{name}: {_shown(state)}. Give the flags and data they were made with or another "
                "--out, or make them anew with --replace."
            )

    def _remember(self) -> None:
        content = dataclasses.asdict(self.order)
        kept = {name: content[name] for name in ("table", "seeds", "overrides")}
        write_json(
            self.order.out / "sweep.json",
            {**kept, "data": self.cells[0].fingerprint, "command": list(self.command)},
        )

    def _tell_notes(self, display: Display, missing: int) -> None:
        display.print(
            f"{self.order.table}: {len(self.chosen)} cells, {len(self.chosen) - missing} done."
        )
        noted = [cell for cell in self.chosen if self.states[cell.name].notes]
        if noted:
            note = self.states[noted[0].name].notes[0]
            display.print(
                f"{len(noted)} cells were begun at another commit; {noted[0].name}: {note}"
            )

    def _run(self, cells: Sequence[Cell], display: Display) -> None:
        if not self.order.keep_checkpoints:
            for cell in self.chosen:  # of a sweep that was killed before it could
                if self.states[cell.name].name == "done":
                    drop_checkpoints(cell)
        begun, ended, last = time.monotonic(), 0, ""

        def when_ended(cell: Cell, attempt: Attempt) -> None:
            nonlocal ended, last
            ended += 1
            last = f"{cell.name}  {self._finish(cell, attempt)}"
            seconds = (time.monotonic() - begun) / ended * (len(cells) - ended)
            left = f"  about {formats.duration(seconds)} left" if ended < len(cells) else ""
            took = formats.duration(attempt.seconds)
            display.print(f"{ended}/{len(cells)}  {last}  {took}{left}")
            show(ended, f"last: {last}{left}")

        def show(ended: int, note: str) -> None:
            if display.console.is_terminal:  # elsewhere each cell has its line
                display.update("cells", ended, len(cells), note)

        if cells:
            show(0, "")
        run_cells(
            [(cell, self._command(cell)) for cell in cells],
            jobs=self.order.jobs,
            processes=self.order.processes,
            when_ended=when_ended,
        )

    def _finish(self, cell: Cell, attempt: Attempt) -> str:
        """Takes up what a cell left; returns it in a few words."""
        state = state_of(cell)
        self.states[cell.name] = state
        self._records.pop(cell.name, None)
        if attempt.exit_code or state.name != "done":
            self.failed[cell.name] = attempt
            return f"FAILED with {_ending(attempt)}"
        if not self.order.keep_checkpoints:
            drop_checkpoints(cell)
        self.write_results()
        return self.kind.outcome(self._records[cell.name])

    def _end(self) -> int:
        """Lists what is not in the results though it is there, and what failed."""
        others = [name for name, state in self.states.items() if state.name == "other"]
        if others:
            print(
                f"Left out of the results, made with other flags or data: {', '.join(others)}",
                file=sys.stderr,
            )
        by_name = {cell.name: cell for cell in self.chosen}
        for name, attempt in self.failed.items():
            log = by_name[name].log
            print(f"\n{name} failed with {_ending(attempt)}; the end of {log}:", file=sys.stderr)
            count = TORCHRUN_LINES if attempt.processes > 1 else LOG_LINES
            print(_last_lines(log, count), file=sys.stderr)
        if self.failed:
            count = f"{len(self.failed)} cell{'s' if len(self.failed) > 1 else ''}"
            print(f"\n{count} failed. The same command tries again.", file=sys.stderr)
        print(f"Table: {self.order.out / 'table.md'}  Report: {self.order.out / 'report.html'}")
        return 1 if self.failed else 0


def check_folder(order: Order) -> None:
    """A sweep may begin in a new or empty folder, and go on in one of the same table.

    Raises:
        InputError: it is neither.
    """
    out = order.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give another --out.")
    if not out.exists() or not any(entry.name != ".lock" for entry in out.iterdir()):
        return
    try:
        there = json.loads((out / "sweep.json").read_text())["table"]
    except FileNotFoundError as error:
        raise InputError(f"{out} is not empty and holds no sweep. Give another --out.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out / 'sweep.json'} is damaged. Give another --out.") from error
    if there != order.table:
        raise InputError(
            f"{out} holds a sweep of {there}, not of {order.table}. Give another --out."
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One sweep at a time; the kernel lets go of it however the process ends.

    Raises:
        InputError: another one is at it, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(f"The folder {out} cannot be made: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another sweep is at work in {out}. Wait for it, or give another --out."
            ) from error
        yield


def drop_checkpoints(cell: Cell) -> None:
    """Of a cell that is done: its predictions and metrics are all that the results need."""
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)


def _shown(state: State, most: int = 6) -> str:
    more = len(state.differences) - most
    return "; ".join(state.differences[:most]) + (f"; and {more} more" if more > 0 else "")


def _ending(attempt: Attempt) -> str:
    if attempt.exit_code is not None and attempt.exit_code < 0:
        return signal_name(-attempt.exit_code)
    return f"exit code {attempt.exit_code}"


def _last_lines(log: Path, count: int) -> str:
    try:
        lines = log.read_text(errors="replace").rstrip().splitlines()
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(lines[-count:])
