"""A job whose worker is killed ends with the results of one that was not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.trainer.command_lines import Job
from tests.trainer.launching import (
    ENDLESS,
    LONG,
    has_checkpoint,
    outcome,
    ranks_of,
    running,
    start,
    wait_until,
)

COMPONENT = "torchx_specs/components.py:train"


@pytest.mark.slow
def test_a_torchx_job_with_a_killed_worker_gives_the_same_results(
    store: Path, tmp_path: Path
) -> None:
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    line = ["train", "dare", "--data", store, "--out", whole, *LONG]
    assert Job(tmp_path, *line, world_size=2).end().codes == [0, 0]
    torchx = ["torchx", "run", "-s", "local_cwd", "-cfg", f"log_dir={tmp_path / 'logs'}"]
    options = ["-j", "1x2", "--max_restarts", 2, "--"]
    line = ["dare", "--data", store, "--out", run, *LONG, "--resume"]
    job = start(*torchx, COMPONENT, *options, *line, log=log)
    with running(job, signal.SIGTERM):
        wait_until(has_checkpoint(run), log)
        os.kill(ranks_of(run)[-1], signal.SIGKILL)
        assert job.wait(timeout=200) == 0, log.read_text()
    assert "Resuming" in log.read_text()
    assert outcome(run) == outcome(whole)


@pytest.mark.soak
@pytest.mark.parametrize("training", [False, True])
def test_ranks_end_with_a_torchrun_that_is_killed(
    training: bool, store: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = ["torchrun", "--nproc-per-node", 2, "-m", "trainer.main", "train"]
    job = start(*words, "dare", "--data", store, "--out", run, *ENDLESS, log=log)
    with running(job, signal.SIGKILL):
        wait_until(lambda: len(ranks_of(run)) == 2, log)
        if training:
            wait_until(has_checkpoint(run), log)
        job.kill()
        wait_until(lambda: not ranks_of(run), log)
        assert job.wait() == -signal.SIGKILL  # torchrun itself could not end them
        assert not (run / "summary.json").exists()
