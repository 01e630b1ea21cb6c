"""A Ray head as docs/clusters.md has it, on the loopback address alone: for tests that join it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.trainer.launching import REPOSITORY, running, start, wait_until

COMPONENT = "torchx_specs/components.py:train"


@dataclass
class Head:
    """A running one."""

    process: subprocess.Popen
    address: str
    dashboard: str
    environment: dict[str, str]
    log: Path

    def torchx(self, *words: object) -> str:
        """Runs a command of TorchX and returns what it prints."""
        ended = subprocess.run(
            [str(Path(sys.executable).parent / "torchx"), *map(str, words)],
            cwd=REPOSITORY,
            env=os.environ | self.environment | {"RAY_ADDRESS": f"http://{self.dashboard}"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def submit(self, *line: object) -> str:
        """``torchx run`` of a training of two nodes with a rank each; its handle."""
        options = ["-j", "2x1", "--cpu", 1, "--rdzv_port", free_port(), "--"]
        run = ["run", "-s", "ray", "-cfg", f"dashboard_address={self.dashboard}"]
        wait_until(self._takes_jobs, self.log)
        return self.torchx(*run, COMPONENT, *options, *line).strip()

    def _takes_jobs(self) -> bool:
        """An agent that starts them comes up some time after the dashboard does."""
        words = ["ray", "job", "submit", "--address", f"http://{self.dashboard}", "--", "true"]
        return start(*words, log=self.log, **self.environment).wait() == 0

    def state(self, handle: str) -> str:
        """As ``torchx status`` has it."""
        return re.search(r"State: (\w+)", self.torchx("status", handle))[1]


def free_port() -> int:
    """Of the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running_head(log: Path) -> Iterator[Head]:
    """Starts one, which only who has its token can use, and ends it by its process id."""
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone, see docs/clusters.md
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
    }
    port, dashboard = free_port(), free_port()
    # short: Ray's sockets lie in it, and a socket's path has 107 characters
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        words = ["ray", "start", "--head", "--block", "--num-cpus", 4, "--port", port]
        words += ["--disable-usage-stats", "--dashboard-host", "127.0.0.1"]
        words += ["--dashboard-port", dashboard, "--temp-dir", folder]
        process = start(*words, log=log, **environment)
        with running(process, signal.SIGTERM):
            wait_until(lambda: _answers(dashboard), log)
            yield Head(process, f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}", environment, log)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
