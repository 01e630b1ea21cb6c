"""Jobs on a real Ray head: on the loopback address, started and ended here by its process id."""

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

import pytest

from tests.trainer.command_lines import Job
from tests.trainer.launching import (
    ENDLESS,
    LONG,
    REPOSITORY,
    family,
    has_checkpoint,
    listening_beyond_loopback,
    outcome,
    ranks_of,
    running,
    start,
    wait_until,
)

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
        return self.torchx(*run, COMPONENT, *options, *line).strip()

    def state(self, handle: str) -> str:
        """As ``torchx status`` has it."""
        return re.search(r"State: (\w+)", self.torchx("status", handle))[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone, see docs/clusters.md
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port, dashboard = free_port(), free_port()
    log = tmp_path_factory.mktemp("head") / "log"
    # short: Ray's sockets lie in it, and a socket's path has 107 characters
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        words = ["ray", "start", "--head", "--block", "--num-cpus", 4, "--port", port]
        words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard]
        process = start(*words, "--temp-dir", folder, log=log, **environment)
        with running(process, signal.SIGTERM):
            wait_until(lambda: answers(dashboard), log)
            yield Head(process, f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}", environment, log)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


@pytest.fixture(scope="module")
def expected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Two ranks without a launcher that nobody kills."""
    folder = tmp_path_factory.mktemp("expected")
    line = ["train", "dare", "--data", store, "--out", folder / "run", *LONG]
    assert Job(folder, *line, world_size=2).end().codes == [0, 0]
    return outcome(folder / "run")


@pytest.mark.slow
def test_a_secluded_head_listens_on_the_loopback_address_alone(head: Head) -> None:
    assert len(family(head.process.pid)) > 4  # all that Ray consists of
    assert listening_beyond_loopback(family(head.process.pid)) == []


@pytest.mark.slow
def test_a_torchx_job_on_ray_is_submitted_followed_and_equal(
    head: Head, store: Path, tmp_path: Path, expected: tuple
) -> None:
    run = tmp_path / "run"
    handle = head.submit("dare", "--data", store, "--out", run, *LONG)
    assert handle.startswith(f"ray://torchx/{head.dashboard}-train-")
    wait_until(lambda: ranks_of(run), head.log)
    assert head.state(handle) == "RUNNING"
    wait_until(lambda: head.state(handle) != "RUNNING", head.log)
    log = head.torchx("log", handle)
    assert head.state(handle) == "SUCCEEDED", log
    assert "step     48  validation AUC" in log
    assert f"{handle}  SUCCEEDED" in head.torchx("list", "-s", "ray")
    assert outcome(run) == expected


@pytest.mark.soak
def test_a_cancelled_torchx_job_on_ray_leaves_no_process(
    head: Head, store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    handle = head.submit("dare", "--data", store, "--out", run, *ENDLESS)
    wait_until(has_checkpoint(run), head.log)
    head.torchx("cancel", handle)
    wait_until(lambda: not ranks_of(run), head.log)
    assert head.state(handle) == "CANCELLED"


def launch(head: Head, log: Path, *line: object) -> subprocess.Popen:
    words = ["twofold", "launch", "ray", "--address", head.address, "--workers", 2, "--retries", 2]
    return start(*words, "--", *line, log=log, **head.environment)


@pytest.mark.soak
def test_a_ray_job_with_a_killed_worker_gives_the_same_results(
    head: Head, store: Path, tmp_path: Path, expected: tuple
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = launch(head, log, "dare", "--data", store, "--out", run, *LONG)
    with running(job, signal.SIGINT):
        wait_until(has_checkpoint(run), log)
        os.kill(ranks_of(run)[-1], signal.SIGKILL)
        assert job.wait(timeout=280) == 0, log.read_text()
    told = log.read_text()
    assert "twofold: Attempt 2 of 3: goes on from the last checkpoint." in told
    assert "step     48  validation AUC" in told
    assert outcome(run) == expected
    assert not (tmp_path / ".ray").exists()


@pytest.mark.soak
def test_what_a_worker_refuses_is_told_once_and_not_tried_again(
    head: Head, store: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = launch(head, log, "dare", "--data", tmp_path / "none", "--out", tmp_path / "run")
    with running(job, signal.SIGINT):
        assert job.wait(timeout=200) == 2, log.read_text()
    told = log.read_text()
    assert told.count("twofold: ") == 1
    assert "none" in told
    assert "Attempt" not in told
    assert "Traceback" not in told


@pytest.mark.soak
def test_ctrl_c_ends_the_ranks(head: Head, store: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = launch(head, log, "dare", "--data", store, "--out", run, *ENDLESS)
    with running(job, signal.SIGKILL):
        wait_until(has_checkpoint(run), log)
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=60) == 2
        wait_until(lambda: not ranks_of(run), log)
    assert "twofold: Interrupted. Complete checkpoints are kept" in log.read_text()


@pytest.mark.soak
def test_a_cluster_that_is_started_for_a_job_is_on_the_loopback_address_and_ends_with_it(
    store: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    line = ["dare", "--data", store, "--out", run, *ENDLESS]
    job = start("twofold", "launch", "ray", "--workers", 1, "--", *line, log=log)
    with running(job, signal.SIGKILL):
        wait_until(has_checkpoint(run), log)
        members = family(job.pid)
        # but for the store where the ranks meet, which torch opens on all interfaces
        assert listening_beyond_loopback(members - set(ranks_of(run))) == []
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=60) == 2
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members), log)
