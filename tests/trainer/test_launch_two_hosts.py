"""A job on two hosts, one of which is cut off in mid-training."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, two_hosts, why_not
from tests.trainer.command_lines import Job
from tests.trainer.launching import (
    LONG,
    has_checkpoint,
    outcome,
    ranks_of,
    running,
    start,
    wait_until,
)

PORT = 29700
PATIENCE = 8
"""Seconds after which a rank gives up on the other."""


@contextlib.contextmanager
def job(hosts: tuple[Host, Host], log: Path, *line: object) -> Iterator[list[subprocess.Popen]]:
    """A rank on each host, met at a port of the first."""
    first = hosts[0]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                running(
                    start(
                        *host.command(
                            "torchrun", "--nnodes", 2, "--nproc-per-node", 1, "--node-rank", rank,
                            "--master-addr", first.address, "--master-port", PORT,
                            "-m", "trainer.main", *line,
                        ),
                        log=log,
                        GLOO_SOCKET_IFNAME=host.interface,
                    ),
                    signal.SIGKILL,
                )
            )
            for rank, host in enumerate(hosts)
        ]  # fmt: skip


@pytest.mark.soak
def test_a_host_that_is_cut_off_ends_the_job_and_a_restart_gives_the_same_results(
    store: Path, tmp_path: Path
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert Job(tmp_path, "train", "dare", "--data", store, "--out", whole, *LONG,
               world_size=2).end().codes == [0, 0]  # fmt: skip
    line = ["train", "dare", "--data", store, "--out", run, *LONG, "--resume"]
    line += ["--peer-timeout", PATIENCE]
    with two_hosts() as hosts:
        with job(hosts, log, *line) as agents:
            wait_until(has_checkpoint(run), log)
            hosts[1].connect(False)
            codes = [agent.wait(timeout=120) for agent in agents]
            assert 0 not in codes
            wait_until(lambda: not ranks_of(run), log)
        assert "twofold: " in log.read_text()
        hosts[1].connect(True)
        with job(hosts, log, *line) as agents:
            codes = [agent.wait(timeout=200) for agent in agents]
            assert codes == [0, 0], log.read_text()
    assert "Resuming" in log.read_text()
    assert outcome(run) == outcome(whole)
