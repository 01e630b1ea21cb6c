"""What the user sees while a job runs: a bar on a terminal, plain lines elsewhere; rank 0 only."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_SIGNS = 1.0


class Display:
    """Output of rank 0; on the other ranks every call does nothing."""

    def __init__(self, shown: bool, signs: SignsOfLife | None = None) -> None:
        """``signs``: told of all that is shown."""
        self.console = Console(quiet=not shown)
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.completed:>6}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and self.console.is_terminal),
        )
        self._signs = signs
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        self._spoken = False

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def print(self, *parts: RenderableType) -> None:
        """Prints above the bar."""
        self.console.print(*parts, highlight=False)

    def update(self, what: str, done: int, total: int, note: str = "") -> None:
        """Moves the bar called ``what``; it goes away when it is full."""
        if self._signs:
            self._signs.update(what, done, total)
        if self._bar.disable:
            self._print_line(what, done, total, note)
            return
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, completed=done, note=note)
        self._bar.update(self._tasks[what], completed=done, total=total, note=note)
        if done >= total:
            self._bar.remove_task(self._tasks.pop(what))

    def _print_line(self, what: str, done: int, total: int, note: str) -> None:
        """At once of what is first shown, and of all that lasts every ten seconds."""
        now = time.monotonic()
        last = self._last_line.setdefault(what, now if self._spoken else -math.inf)
        if now - last >= SECONDS_BETWEEN_LINES:
            self._last_line[what], self._spoken = now, True
            self.print(f"{what} {done}/{total} {note}".rstrip())
        if done >= total:
            del self._last_line[what]


class SignsOfLife:
    """Writes ``RUN/progress.json``, from which ``twofold status`` says how far a job is.

    At most once a second, and where something has come to its end. Readers see the old file or the
    new one.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / "progress.json"
        self._last = -math.inf
        self._train: dict[str, float] = {}
        self._begun = 0.0

    def update(self, doing: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of training, or batches of the evaluation of a split."""
        now = time.monotonic()
        if doing == "train":
            if not self._train:
                self._begun = now
            first = self._train.get("first_step", done)
            self._train = {
                "first_step": first,
                "step": done,
                "steps": total,
                "seconds_since_first_step": now - self._begun,
            }
        if now - self._last < SECONDS_BETWEEN_SIGNS and done < total:
            return
        self._last = now
        content = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "doing": doing,
            "done": done,
            "total": total,
            **self._train,
        }
        temporary = self._file.with_name(".progress.json")
        temporary.write_text(json.dumps(content))
        temporary.replace(self._file)
