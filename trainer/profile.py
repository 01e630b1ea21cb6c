"""A trace of chosen training steps, on request: what each operator and kernel took."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from data.errors import InputError
from trainer.processes import Ranks


class StepProfile:
    """Traces steps ``first`` to ``last``, both included, of every rank.

    Each rank writes ``RUN/profile/rank<r>.json.gz``, which chrome://tracing and
    https://ui.perfetto.dev open. The trace is held in memory until the last step has been taken;
    docs/reliability.md says what that costs. Steps outside the range cost nothing.
    """

    def __init__(self, steps: str, run: Path, ranks: Ranks) -> None:
        """``steps``: as the user gives them, e.g. ``100:110``.

        Raises:
            InputError: that is no range of steps.
        """
        self.first, self.last = _parse(steps)
        self.file = run / "profile" / f"rank{ranks.rank}.json.gz"
        self._on_gpu = ranks.device.type == "cuda"
        self._trace: profile | None = None
        self._taken = 0

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around training step ``number``; steps count from 1 and over epochs."""
        if self._trace is None and self.first <= number <= self.last:
            self._begin()  # at the first of them, or where a resumed run comes into the range
        yield
        self._taken += self._trace is not None
        if number == self.last:
            self._write()

    def _begin(self) -> None:
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_gpu
        self._trace = profile(activities=kinds)
        self._trace.start()

    def _write(self) -> None:
        if self._trace is not None:
            trace, self._trace = self._trace, None
            trace.stop()
            self.file.parent.mkdir(exist_ok=True)
            trace.export_chrome_trace(str(self.file))

    def close(self) -> str:
        """Writes what is not written yet, where training ended early; a sentence for the user."""
        self._write()
        if not self._taken:
            return f"No step of {self.first} to {self.last} was taken: nothing was traced."
        return f"Trace of {self._taken} steps: {self.file}"


def _parse(steps: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,15}):(\d{1,15})", steps)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise InputError(
            f"--profile wants the first and the last step to trace, e.g. 100:110, got {steps!r}. "
            "Steps count from 1."
        )
    return first, last
