"""What a run has been through: every start, how it ended, and the step it was in.

``RUN/attempts.jsonl`` has two lines for an attempt::

    {"kind": "begin", "attempt": 1, "at": "2026-11-23T02:00:00+00:00", "step": 10, "world_size": 2}
    {"kind": "end", "attempt": 1, "at": ..., "step": 13, "how": "failed"}

``how``: finished; preempted (SIGTERM); interrupted (Ctrl-C); refused (the user's to put right);
failed (an error, or another rank lost); killed (written by the next attempt, for one that could
not).
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any, Literal

from data.errors import InputError
from sharding.errors import PlanError
from trainer.processes import Preempted

How = Literal["finished", "preempted", "interrupted", "refused", "failed", "killed"]
_CRASHES = ("failed", "killed")


def how_it_ended(error: BaseException) -> How:
    """Of an attempt that this exception ended."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    told_to_end = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    if told_to_end or isinstance(error, Preempted):
        return "preempted"
    return "refused" if isinstance(error, InputError | PlanError) else "failed"


class Attempts:
    """Written by rank 0."""

    def __init__(self, run: Path) -> None:
        self._log = run / "attempts.jsonl"
        self._place = run / ".step"
        """Number of the step that training is in: outlives a kill."""
        self._file: int | None = None
        self._number = 0

    def begin(self, step: int, world_size: int) -> None:
        """Training starts after ``step``."""
        lines = self._settled()
        self._number = 1 + max((line["attempt"] for line in lines), default=0)
        self._append("begin", step=step, world_size=world_size)
        self._file = os.open(self._place, os.O_WRONLY | os.O_CREAT, 0o644)
        self.at(step)

    def at(self, step: int) -> None:
        """Training is in this step: one write of a few bytes, microseconds."""
        if self._file is not None:
            os.pwrite(self._file, b"%020d\n" % step, 0)

    def end(self, how: How) -> None:
        """The attempt ended, in the step of the last ``at``; nothing if none was begun.

        Where it cannot be written, as on a full disk, the next attempt takes this one for killed:
        what ended it is what the user has to know.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            os.close(file)
            self._append("end", step=self._step(), how=how)
            self._place.unlink(missing_ok=True)

    def crashes(self) -> tuple[int, int]:
        """(step, n): the last n attempts crashed in it, one after the other."""
        ends = [line for line in self._settled() if line["kind"] == "end"]
        if not ends or ends[-1]["how"] not in _CRASHES:
            return 0, 0
        step = ends[-1]["step"]
        same = itertools.takewhile(
            lambda end: end["how"] in _CRASHES and end["step"] == step, reversed(ends)
        )
        return step, len([*same])

    def _settled(self) -> list[dict[str, Any]]:
        """All lines, after one for an attempt that was killed before it could write its own."""
        lines = self._lines()
        if lines and lines[-1]["kind"] == "begin":
            self._number = lines[-1]["attempt"]
            self._append("end", step=self._step(), how="killed")
            lines = self._lines()
        return lines

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self._log.read_text().splitlines() if self._log.exists() else []:
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut by a kill
                continue
        return lines

    def _append(self, kind: str, **facts: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"kind": kind, "attempt": self._number, "at": now, **facts}
        text = self._log.read_text() if self._log.exists() else ""
        with self._log.open("a") as file:
            # a line that a kill cut stays alone
            torn = text and not text.endswith("\n")
            file.write("\n" * bool(torn) + json.dumps(record) + "\n")

    def _step(self) -> int:
        try:
            return int(self._place.read_text())
        except (OSError, ValueError):
            return 0
