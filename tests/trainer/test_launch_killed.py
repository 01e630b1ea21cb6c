"""A job whose worker is killed ends with the results of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
ORPHAN = """
import os, time
while os.getppid() == {launcher}:
    time.sleep(0.01)
from trainer.launch.process import end_with_launcher
end_with_launcher()
time.sleep(60)
"""
LAUNCHER = f"""
import os, subprocess, sys
code = {ORPHAN!r}.replace("{{launcher}}", str(os.getpid()))
out = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
print(subprocess.Popen([sys.executable, "-c", code], **out).pid)
"""


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


def test_a_process_that_lost_its_launcher_before_it_could_look_ends(tmp_path: Path) -> None:
    if b"python" in Path("/proc/1/cmdline").read_bytes().partition(b"\0")[0]:
        pytest.skip("the first process of this machine is Python, as a launcher may be")
    launched = subprocess.run([sys.executable, "-c", LAUNCHER], capture_output=True, check=True)
    orphan = Path("/proc") / launched.stdout.decode().strip()
    log = tmp_path / "log"
    log.touch()
    wait_until(lambda: not orphan.exists() or ") Z " in (orphan / "stat").read_text(), log, 30)
    assert launched.returncode == 0
