"""Command lines run to their end, each rank in a fork: a start costs 0.1 s and not 8."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trainer import cli

TINY = (
    "--history-length=16", "--requests-per-batch=67", "--model.top-k=4", "--bootstrap=10",
    "--model.auxiliary-others=4", "--model.hidden=8", "--model.auxiliary-hidden=8",
    "--fields.attention-dim=4", "--fields.representation-dim=4",
)  # fmt: skip
"""Overrides: a training takes less than a second."""


class Ended(NamedTuple):
    """What a user saw, of all ranks together."""

    codes: list[int]
    """By rank; negative: the signal that ended it."""
    out: str
    err: str


class Job:
    """A running command line."""

    def __init__(
        self, folder: Path, *arguments: object, world_size: int = 1, cwd: str = ""
    ) -> None:
        """``cwd``: below ``folder``, with {rank} in it where ranks differ."""
        self.out, self.err = folder / "stdout", folder / "stderr"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        sys.stdout.flush()
        self.ranks = []
        for rank in range(world_size):
            pid = os.fork()
            if pid == 0:
                os.chdir(folder / cwd.format(rank=rank))
                self._run([str(argument) for argument in arguments], rank, world_size, port)
            self.ranks.append(pid)

    def _run(self, arguments: list[str], rank: int, world_size: int, port: int) -> None:
        """Never returns: what pytest would do at its exit is not this fork's to do."""
        code = 1
        try:
            for number, file in ((1, self.out), (2, self.err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.stdout, sys.stderr = (
                os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2)
            )
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(COLUMNS="100", OMP_NUM_THREADS="1")
            if world_size > 1:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(world_size),
                    LOCAL_WORLD_SIZE=str(world_size),
                    MASTER_ADDR="localhost",
                    MASTER_PORT=str(port),
                )
            code = cli.run(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait_until(self, done: Callable[[], bool], seconds: float = 30) -> None:
        """Returns when ``done`` says so."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.02)

    def prints(self, text: str) -> Callable[[], bool]:
        """For ``wait_until``."""
        return lambda: self.out.exists() and text in self.out.read_text()

    def signal(self, number: signal.Signals, ranks: list[int] | None = None) -> None:
        """Sends a signal; to all ranks, as a terminal's Ctrl-C does, unless told otherwise."""
        for rank in range(len(self.ranks)) if ranks is None else ranks:
            os.kill(self.ranks[rank], number)

    def end(self, seconds: float = 60) -> Ended:
        """Waits; a rank that hangs is killed, and its code tells."""
        deadline, codes = time.monotonic() + seconds, []
        for pid in self.ranks:
            while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
            codes.append(os.waitstatus_to_exitcode(ended[1]))
        return Ended(codes, self.out.read_text(), self.err.read_text())
