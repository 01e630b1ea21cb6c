"""Sweeps of real jobs of a second: each cell is a fork that need not import torch."""

from __future__ import annotations

import csv
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.trainer.command_lines import TINY
from trainer import cli
from trainer.steps import __main__ as steps
from trainer.sweep import jobs
from trainer.sweep.tables import TABLES, Row, SweepTable

TABLE = SweepTable(
    sentence="Does width matter?",
    axis="width",
    reference="wide",
    rows=(
        Row("wide", "dare", line="dare", x=4),
        Row("narrow", "dare", ("--model.top-k", "2"), line="dare", x=2),
    ),
)
"""Two rows."""
OVERRIDES = (
    *(flag for flag in TINY if "top-k" not in flag), "--evaluate-every=2", "--epochs=3",
    "--patience=50",
)  # fmt: skip
CELLS = ("wide-seed1", "narrow-seed1", "wide-seed2", "narrow-seed2")
"""In the order in which they run."""


def sweep(store: Path, out: Path, *options: str, overrides: Sequence[str] = OVERRIDES) -> list[str]:
    """A command line."""
    return [
        "sweep", "small", "--data", str(store), "--out", str(out), "--seeds", "2", *options, "--",
        *overrides,
    ]  # fmt: skip


def patch(before: Callable[[list[str]], None] = lambda command: None) -> None:
    """Adds the table, and lets cells be forks. For a process that ends with the test.

    Args:
        before: called in each training with its command line, e.g. to break something there.
    """
    TABLES["small"] = TABLE

    def start(
        command: Sequence[str], log: Path, environment: dict[str, str], *, append: bool
    ) -> Any:
        if not append:
            log.write_bytes(b"")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                jobs.end_with_parent()
                for number in (1, 2):
                    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
                os.environ.update(environment)
                torch.set_num_threads(1)
                if "trainer.steps" in command:
                    sys.argv = list(command[command.index("trainer.steps") :])
                    code = steps.main()
                else:
                    arguments = list(command[command.index("train") :])
                    before(arguments)
                    code = cli.run(arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return SimpleNamespace(pid=pid, returncode=None)

    jobs.start = start


def lines(file: Path) -> list[dict[str, str]]:
    """Of a CSV file."""
    with file.open() as rows:
        return list(csv.DictReader(rows))


CLOCKS = (
    "train_seconds", "samples_per_second", "cpu_seconds", "peak_memory", "attempts", "commit",
)  # fmt: skip


def without_clocks(file: Path) -> list[dict[str, str]]:
    """Lines of a CSV file without what a clock says."""
    return [
        {name: value for name, value in row.items() if not name.startswith(CLOCKS)}
        for row in lines(file)
    ]
