"""A run that was killed again and again, and resumed each time, is the run that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import STEPS, outcome, training_line
from tests.trainer.command_lines import Job

Uninterrupted = Callable[[int], dict[str, Any]]
pytestmark = pytest.mark.usefixtures("without_report")


@pytest.mark.parametrize(
    ("world_size", "kills"),
    [
        (1, 2),
        (2, 1),
        pytest.param(1, 20, marks=pytest.mark.soak),
        pytest.param(2, 20, marks=pytest.mark.soak),
    ],
)
def test_a_rank_is_killed_at_random_moments(
    world_size: int,
    kills: int,
    store: Path,
    tmp_path: Path,
    uninterrupted: Uninterrupted,
    draw: random.Random,
) -> None:
    """The other rank, which waits for it, ends by itself."""
    whole = uninterrupted(world_size)
    killed = runs = 0
    while killed < kills:
        runs += 1
        run = tmp_path / f"run{runs}"
        while True:
            before = written(run)
            job = Job(tmp_path, *training_line(store, run, "--resume"), world_size=world_size)
            hit = kill_later(job, run, before, draw) if killed < kills else False
            ended = job.end()
            killed += hit
            if set(ended.codes) == {0}:
                break
            assert hit, ended
            assert -signal.SIGKILL in ended.codes
            assert not ended.err or "Traceback" not in ended.err, ended.err
            assert set(ended.codes) <= {-signal.SIGKILL, 1, 2, 75}, ended
            job.out.unlink()
            job.err.unlink()
        assert outcome(run) == whole
        left = [file.name for file in (run / "checkpoints").iterdir() if "partial" in file.name]
        assert left == []


def kill_later(job: Job, run: Path, before: int, draw: random.Random) -> bool:
    """SIGKILL to a random rank while it starts, or a moment after a random step began; False if it
    had ended. By steps and not by seconds: those of a busy machine say nothing.

    ``before``: what ``written`` said when the job was started.
    """
    rank, goal = draw.randrange(len(job.ranks)), draw.randrange(-2, STEPS + 1)
    pause = draw.uniform(0, 2.0 if goal < 0 else 0.3)
    while goal >= 0 and not has_ended(job, rank) and not reached(goal, run, before):
        time.sleep(0.005)
    time.sleep(pause)
    if has_ended(job, rank):
        return False
    job.signal(signal.SIGKILL, [rank])
    return True


def has_ended(job: Job, rank: int) -> bool:
    """It stays to be waited for."""
    return os.waitid(os.P_PID, job.ranks[rank], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def written(run: Path) -> int:
    """When the number of the step that training is in was last written, in ns; 0: never."""
    file = run / ".step"
    return file.stat().st_mtime_ns if file.exists() else 0


def reached(goal: int, run: Path, before: int) -> bool:
    """Is training, since then, in this step or beyond?"""
    try:
        return written(run) > before and int((run / ".step").read_text()) >= goal
    except (OSError, ValueError):  # being removed, being written
        return False


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["launcher", "rank"])
def test_torchrun_or_one_of_its_ranks_is_killed(
    victim: str, store: Path, tmp_path: Path, uninterrupted: Uninterrupted, draw: random.Random
) -> None:
    """5 kills each. Ranks do not outlive their launcher, so the folder is free again."""
    whole, run, killed, runs = uninterrupted(2), tmp_path / "run", 0, 0
    while killed < 5:
        runs += 1
        run = tmp_path / f"run{runs}"
        while True:
            before = written(run)
            process = torchrun(*training_line(store, run, "--resume"))
            hit = killed < 5 and kill_torchrun(process, victim, run, before, draw)
            out, err = process.communicate(timeout=120)
            killed += hit
            if process.returncode == 0:
                break
            assert hit, out + err
            wait_for_group(process.pid)
        assert outcome(run)["predictions"] == whole["predictions"]


def torchrun(*line: object) -> subprocess.Popen[str]:
    """Two ranks, in a session of their own."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *words, "-m", "trainer.main", *map(str, line)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_torchrun(
    process: subprocess.Popen[str], victim: str, run: Path, before: int, draw: random.Random
) -> bool:
    """Kills it, or one of its ranks, in a random step; False if that had ended."""
    goal, pause = draw.randrange(STEPS), draw.uniform(0, 0.3)
    while process.poll() is None and not reached(goal, run, before):
        time.sleep(0.05)
    time.sleep(pause)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ranks = [int(pid) for pid in children.read_text().split()] if process.poll() is None else []
    if not ranks:
        return False
    os.kill(process.pid if victim == "launcher" else draw.choice(ranks), signal.SIGKILL)
    return True


def wait_for_group(group: int, seconds: float = 60.0) -> None:
    """Until no process of a group is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("ranks have outlived their launcher")
