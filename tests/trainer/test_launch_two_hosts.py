"""Jobs on two hosts: one is cut off in mid-training, ranks are killed, ports are few."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, two_hosts, why_not
from tests.trainer.command_lines import Job
from tests.trainer.launching import (
    ENDLESS,
    LONG,
    family,
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
ALLOWED = range(41000, 41200)


@contextlib.contextmanager
def job(
    hosts: tuple[Host, Host], log: Path, *line: object, restarts: int = 0, **environment: str
) -> Iterator[list[subprocess.Popen]]:
    """A rank on each host, met at a port of the first; with ``restarts`` agents that agree on
    each new start, without any they need not.
    """
    first = hosts[0].address

    def meets(rank: int) -> list[object]:
        if not restarts:
            return ["--node-rank", rank, "--master-addr", first, "--master-port", PORT]
        elastic = ["--max-restarts", restarts, "--local-addr", hosts[rank].address]
        elastic += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{PORT}"]
        # by names torchrun would not know that the first host is here
        return [*elastic, "--rdzv-conf", f"is_host={rank == 0}"]

    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                running(
                    start(
                        *host.command(
                            "torchrun", "--nnodes", 2, "--nproc-per-node", 1, *meets(rank),
                            "-m", "trainer.main", *line,
                        ),
                        log=log,
                        GLOO_SOCKET_IFNAME=host.interface,
                        **environment,
                    ),
                    signal.SIGKILL,
                )
            )
            for rank, host in enumerate(hosts)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Two ranks of one host that nobody disturbs."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("expected")
    line = ["train", "dare", "--data", store, "--out", folder / "run", *LONG]
    assert Job(folder, *line, world_size=2).end().codes == [0, 0]
    return outcome(folder / "run")


@pytest.mark.soak
def test_a_host_that_is_cut_off_ends_the_job_and_a_restart_gives_the_same_results(
    store: Path, tmp_path: Path, expected: tuple
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
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
    assert outcome(run) == expected


@pytest.mark.soak
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_of_one_host_is_started_again_with_all_others(
    killed: int, store: Path, tmp_path: Path, expected: tuple
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    line = ["train", "dare", "--data", store, "--out", run, *LONG, "--resume"]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with two_hosts() as hosts, job(hosts, log, *line, restarts=1, **own_store) as agents:
        wait_until(has_checkpoint(run), log)
        [rank] = set(ranks_of(run)) & family(agents[killed].pid)
        os.kill(rank, signal.SIGKILL)
        codes = [agent.wait(timeout=200) for agent in agents]
        assert codes == [0, 0], log.read_text()
    assert "Resuming" in log.read_text()
    assert outcome(run) == expected


@pytest.mark.soak
def test_ranks_meet_at_ports_that_their_hosts_allow(store: Path, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    run, log = tmp_path / "run", tmp_path / "log"
    line = ["train", "dare", "--data", store, "--out", run, *ENDLESS]
    with two_hosts() as hosts:
        for host in hosts:
            host.limit_ports(ALLOWED)
        own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with job(hosts, log, *line, restarts=1, **own_store):
            wait_until(has_checkpoint(run), log)
            ports = [host.ports() - {PORT} for host in hosts]
    assert all(ports)
    assert set.union(*ports) <= set(ALLOWED)
