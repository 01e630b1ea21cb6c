"""Launchers as real processes: started in a session of their own, looked at, ended by their ids."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.trainer.command_lines import TINY

REPOSITORY = Path(__file__).parents[2]
LONG = (*TINY, "--evaluate-every", "2", "--epochs", "12", "--patience", "1000")
"""48 steps with a checkpoint after every second one: time enough to be killed in between."""
ENDLESS = (*LONG[:-4], "--epochs", "100000", "--patience", "100000")


def start(*words: object, log: Path, **environment: str) -> subprocess.Popen:
    """Starts a command of this environment in the repository; its words go to ``log``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("a") as file:
        return subprocess.Popen(
            [str(word) for word in words],
            cwd=REPOSITORY,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextlib.contextmanager
def running(process: subprocess.Popen, ends: signal.Signals) -> Iterator[subprocess.Popen]:
    """Ends it and, after half a minute, its whole session."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(ends)
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(done: Callable[[], object], log: Path, seconds: float = 200) -> None:
    """Looks again and again; the log says why it was in vain."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def family(pid: int) -> set[int]:
    """A process and all that come from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening_beyond_loopback(pids: set[int]) -> list[str]:
    """Addresses at which processes wait for other hosts, in the hexadecimal of /proc/net."""
    sockets = set()
    for member in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{member}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(entry.readlink()))
    own = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
    return [
        words[1]
        for name in ("tcp", "tcp6")
        for words in map(str.split, Path(f"/proc/net/{name}").read_text().splitlines()[1:])
        if words[3] == "0A" and f"socket:[{words[9]}]" in sockets and words[1][:-5] not in own
    ]


def ranks_of(run: Path) -> list[int]:
    """Processes of the trainer that work on a run, whoever has started them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if str(run) in words and {"trainer.main", "trainer.launch.process"} & set(words[:5]):
                found.append(int(folder.name))
    return sorted(found)


def has_checkpoint(run: Path) -> Callable[[], bool]:
    """For ``wait_until``."""
    return (run / "checkpoints" / "last" / "position.json").exists


def outcome(run: Path) -> tuple[dict[str, Any], bytes]:
    """Metrics and predictions, which are equal to the bit where nothing was lost."""
    summary = json.loads((run / "summary.json").read_text())
    names = ("auc", "gauc", "logloss", "normalized_entropy", "calibration", "loss_last", "steps")
    predictions = (run / "predictions-test.arrow").read_bytes()
    return {name: summary[name] for name in names}, predictions
