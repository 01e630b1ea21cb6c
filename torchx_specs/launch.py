"""Runs a training job on this machine through TorchX's ``local_cwd`` scheduler and follows it.

Logs of a job, all under ``log_dir``:
  torchx/<app>/<role>/0/stderr.log                                  torchrun's own words
  torchx/<app>/torchelastic/<role>/<run>/attempt_0/<rank>/std*.log  one folder for each rank
"""

import codecs
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from torchx.components import dist
from torchx.runner import Runner, get_runner
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDef, AppState, parse_app_handle

from torchx_specs.components import environment
from torchx_specs.ending import ending

_POLL = 0.1  # seconds: a progress bar drawn ten times a second still looks alive
_TAIL = 30  # lines of a failed rank that are shown
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it, and a cancelled rank cannot bring it back


def run_local(
    args: Sequence[str],
    nproc: int,
    log_dir: Path,
    stream: bool = True,
    module: str = "trainer.main",
) -> int:
    """Runs ``python -m module *args`` on ``nproc`` ranks, waits, and returns the exit code.

    With ``stream`` rank 0's output appears here while it runs, byte for byte, so that its
    progress bar works. The code is 0, or 2 if the first rank to fail left with 2 (wrong input),
    else 1; then the tail of that rank's stderr is printed unless it has been seen already.
    Ctrl-C and SIGTERM cancel the job, then arrive as KeyboardInterrupt and SystemExit(143).
    """
    interactive = stream and sys.stdout.isatty()
    app = _describe(args, nproc, module, interactive)
    with _restored_signals(), get_runner() as runner:
        handle = runner.run(app, "local_cwd", cfg={"log_dir": str(log_dir.absolute())})
        _, session, app_id = parse_app_handle(handle)
        logs = log_dir / session / app_id
        try:
            state = _follow(runner, handle, logs, stream)
        except (SignalException, KeyboardInterrupt) as interruption:
            runner.cancel(handle)
            if interactive:
                print(_SHOW_CURSOR, end="", flush=True)
            if getattr(interruption, "sigval", signal.SIGINT) == signal.SIGTERM:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise KeyboardInterrupt from None
    if state is AppState.SUCCEEDED:
        return 0
    return _report_failure(logs, stream)


def _describe(args: Sequence[str], nproc: int, module: str, interactive: bool) -> AppDef:
    """The job: this interpreter's torchrun, and one file for each rank and stream."""
    path = (str(Path(sys.executable).parent), os.environ.get("PATH"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    env = environment(cores or 1, nproc, nodes=1) | {
        "PATH": os.pathsep.join(filter(None, path)),
        "PET_REDIRECTS": "3",  # torchrun --redirects: stdout and stderr
    }
    if interactive:
        size = shutil.get_terminal_size()
        env |= {
            "TTY_COMPATIBLE": "1",  # rich draws its bars although it writes to a file
            "TTY_INTERACTIVE": "1",
            "COLUMNS": str(size.columns),
            "LINES": str(size.lines),
        }
    return dist.ddp(*args, m=module, name="local", j=f"1x{nproc}", env=env, tee=0)


@contextmanager
def _restored_signals() -> Iterator[None]:
    """TorchX's local scheduler leaves its own handlers behind: gives the caller's back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _follow(runner: Runner, handle: str, logs: Path, stream: bool) -> AppState:
    """Waits for the end of the job and copies rank 0's streams meanwhile."""
    tails = [_Tail(logs, "stdout.log", sys.stdout), _Tail(logs, "stderr.log", sys.stderr)]
    while True:
        status = runner.status(handle)
        if stream:  # after the status: what the job wrote before its end is complete by now
            for tail in tails:
                tail.copy()
        if status is None or status.is_terminal():
            return status.state if status else AppState.UNKNOWN
        time.sleep(_POLL)


class _Tail:
    """Copies what rank 0 adds to one of its log files."""

    def __init__(self, logs: Path, name: str, target: TextIO) -> None:
        self.logs, self.name, self.target = logs, name, target
        self.position = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def copy(self) -> None:
        """Copies what is new; the file appears some seconds after the start."""
        file = _rank_log(self.logs, 0, self.name)
        if file is None or file.stat().st_size == self.position:
            return
        with file.open("rb") as log:
            log.seek(self.position)
            data = log.read()
        self.position += len(data)
        self.target.write(self.decoder.decode(data))
        self.target.flush()


def _rank_log(logs: Path, local_rank: int, name: str) -> Path | None:
    return next(logs.glob(f"torchelastic/*/*/attempt_0/{local_rank}/{name}"), None)


class Failure(NamedTuple):
    """The first rank that failed."""

    local_rank: int
    exit_code: int
    """Negative: the number of the signal that ended it."""


def _first_failure(agent_stderr: str) -> Failure | None:
    """Reads the "Root Cause" paragraph of torchrun's last message."""
    _, _, cause = agent_stderr.rpartition("Root Cause")
    rank = re.search(r"\(local_rank:\s*(\d+)\)", cause)
    code = re.search(r"exitcode\s*:\s*(-?\d+)", cause)
    return Failure(int(rank[1]), int(code[1])) if rank and code else None


def _report_failure(logs: Path, streamed: bool) -> int:
    """Prints why the job failed and where its logs are; returns the exit code."""
    agent = next(logs.glob("*/0/stderr.log"), None)
    agent_stderr = agent.read_text(errors="replace") if agent else ""
    failure = _first_failure(agent_stderr)
    if failure is None:
        print(_last_lines(agent_stderr), f"The job failed; logs: {logs}", sep="\n", file=sys.stderr)
        return 1
    log = _rank_log(logs, failure.local_rank, "stderr.log")
    if log is not None and log.stat().st_size and not (streamed and failure.local_rank == 0):
        print(_last_lines(log.read_text(errors="replace")), file=sys.stderr)
    if failure.exit_code == 2:  # wrong input: the rank has said what to do
        return 2
    print(f"Rank {failure.local_rank} {ending(failure.exit_code)}; logs: {logs}", file=sys.stderr)
    return 1


def _last_lines(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_TAIL:])
