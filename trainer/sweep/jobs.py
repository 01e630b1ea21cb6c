"""Runs cells as processes, several at once, and ends them with the sweep however that ends.

A cell is a session of its own: Ctrl-C reaches the sweep alone, which sends SIGTERM to the cell's
process group and SIGKILL to what is left of it. Where the sweep itself is killed, the kernel sends
the cell SIGTERM. Either way its complete checkpoints stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.sweep.cells import Cell

POLL = 0.1
"""Seconds between two looks at the running cells."""
GRACE = 40.0
"""Seconds that a cell has to end after SIGTERM; torchrun gives its ranks 30 of them."""


@dataclass(frozen=True)
class Attempt:
    """One start of a cell. What an end that nobody saw has cost is not known: None."""

    processes: int
    seconds: float | None = None
    cpu_seconds: float | None = None
    """User and system time of all its processes."""
    peak_memory: int | None = None
    """Bytes of its largest process; no less than the sweep held when it forked."""
    exit_code: int | None = None
    """Negative: the signal that ended it."""


class Job:
    """A running cell."""

    def __init__(self, cell: Cell, command: Sequence[str], processes: int, threads: int) -> None:
        self.cell, self._processes = cell, processes
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        fresh = not cell.resumes or "--replace" in command
        self._earlier = [] if fresh else read_attempts(cell)
        self._record(Attempt(processes))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "120"}
        self._begun = time.monotonic()
        self._attempt: Attempt | None = None
        self._process = start(command, cell.log, environment, append=not fresh)

    def ended(self) -> Attempt | None:
        """What it cost, once it has ended."""
        if self._attempt:
            return self._attempt
        # not Popen.wait: it does not say what the process and those it waited for have used
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self._attempt = Attempt(
            processes=self._processes,
            seconds=time.monotonic() - self._begun,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_memory=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            exit_code=code,
        )
        self._record(self._attempt)
        return self._attempt

    def send(self, number: signal.Signals) -> None:
        """To all processes of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _record(self, attempt: Attempt) -> None:
        write_json(self.cell.attempts, [*self._earlier, asdict(attempt)])


def start(
    command: Sequence[str], log: Path, environment: dict[str, str], *, append: bool
) -> subprocess.Popen[bytes]:
    """A session of its own that ends with this process and writes to ``log``."""
    with log.open("ab" if append else "wb") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def end_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent dies; elsewhere does nothing."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


def run_cells(
    cells: Sequence[tuple[Cell, list[str]]],
    *,
    jobs: int,
    processes: int,
    when_ended: Callable[[Cell, Attempt], None],
    tick: Callable[[int], None] = lambda running: None,
) -> None:
    """Runs every cell, ``jobs`` at once. A cell that fails does not stop the others.

    Args:
        cells: with the command of each.
        jobs: cells at once; each gets its share of the cores.
        processes: of each cell.
        when_ended: called in turn, while the next cells run.
        tick: called a few times a second with the number of running cells.
    """
    threads = max(1, usable_cores() // (jobs * processes))
    waiting, running = deque(cells), []
    ended: list[tuple[Job, Attempt]] = []
    with _sigterm_raises():
        try:
            while waiting or running or ended:
                while waiting and len(running) < jobs:
                    cell, command = waiting.popleft()
                    running.append(Job(cell, command, processes, threads))
                for job, attempt in ended:
                    when_ended(job.cell, attempt)
                tick(len(running))
                ended = [(job, attempt) for job in running if (attempt := job.ended())]
                gone = {id(job) for job, _ in ended}
                running = [job for job in running if id(job) not in gone]
                if not ended:
                    time.sleep(POLL)
        finally:
            _stop(running)


def _stop(running: list[Job]) -> None:
    """SIGTERM, and SIGKILL for those that do not heed it; a second Ctrl-C shortens the wait."""
    try:
        for job in running:
            job.send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while running and time.monotonic() < deadline:
            running = [job for job in running if job.ended() is None]
            time.sleep(POLL)
    finally:
        for job in running:
            job.send(signal.SIGKILL)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_attempts(cell: Cell) -> list[dict[str, Any]]:
    """All starts of a cell since it was begun anew."""
    try:
        return json.loads(cell.attempts.read_text())
    except (OSError, ValueError):
        return []


def usable_cores() -> int:
    """Cores that the affinity of this process allows."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_json(file: Path, content: Any) -> None:
    """At once: readers see the old file or the new one."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """At once: readers see the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
