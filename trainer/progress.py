"""What the user sees while a job runs: a bar on a terminal, plain lines elsewhere; rank 0 only."""

from __future__ import annotations

import math
import time

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


class Display:
    """Output of rank 0; on the other ranks every call does nothing."""

    def __init__(self, shown: bool) -> None:
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
        self._tasks: dict[str, TaskID] = {}
        self._last_line = -math.inf

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
        if self._bar.disable:
            now = time.monotonic()
            if now - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                self.print(f"{what} {done}/{total} {note}".rstrip())
            return
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, completed=done, note=note)
        self._bar.update(self._tasks[what], completed=done, total=total, note=note)
        if done >= total:
            self._bar.remove_task(self._tasks.pop(what))
