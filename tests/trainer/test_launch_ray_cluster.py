"""Jobs on a real Ray head: on the loopback address, started and ended here by its process id."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.command_lines import Job
from tests.trainer.launching import (
    ENDLESS,
    LONG,
    family,
    has_checkpoint,
    listening_beyond_loopback,
    outcome,
    ranks_of,
    running,
    start,
    wait_until,
)
from tests.trainer.ray_head import Head, running_head


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head") / "log") as head:
        yield head


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
    assert f"{handle} SUCCEEDED" in " ".join(head.torchx("list", "-s", "ray").split())
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
    wait_until(lambda: head.state(handle) != "RUNNING", head.log)
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
def test_a_ray_job_that_dies_before_it_takes_the_folder_replaces_the_run_on_its_next_attempt(
    head: Head, store: Path, tmp_path: Path, expected: tuple
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    run.mkdir()
    (run / "config.json").write_text('{"job": "another"}')
    job = launch(head, log, "dare", "--data", store, "--out", run, *LONG, "--replace")
    with running(job, signal.SIGINT):
        wait_until(lambda: ranks_of(run), log)
        os.kill(ranks_of(run)[0], signal.SIGKILL)  # it has to import all it needs first
        assert job.wait(timeout=280) == 0, log.read_text()
    assert "twofold: Attempt 2 of 3: starts from the beginning." in log.read_text()
    assert '"another"' not in (run / "config.json").read_text()
    assert outcome(run) == expected


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
