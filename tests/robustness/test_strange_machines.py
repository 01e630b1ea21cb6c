"""Slow ranks, clocks that jump, two jobs for one folder, losses out of range."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.robustness.conftest import outcome, training_line
from tests.trainer.command_lines import Job
from trainer import cli, status
from trainer import train as training

Uninterrupted = Callable[[int], dict[str, Any]]
pytestmark = pytest.mark.usefixtures("without_report")


def test_a_slow_rank_changes_nothing_but_the_time(
    store: Path,
    tmp_path: Path,
    uninterrupted: Uninterrupted,
    draw: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = training.train_step

    def slow(state: Any, batch: Any, experiment: Any, world_size: int) -> Any:
        if dist.get_rank() == 1:
            time.sleep(draw.uniform(0, 0.3))
        return genuine(state, batch, experiment, world_size)

    monkeypatch.setattr(training, "train_step", slow)
    ended = Job(tmp_path, *training_line(store, tmp_path / "run"), world_size=2).end()
    assert ended.codes == [0, 0], ended.err
    assert outcome(tmp_path / "run") == uninterrupted(2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_clock_that_goes_backwards_changes_nothing(
    world_size: int,
    store: Path,
    tmp_path: Path,
    uninterrupted: Uninterrupted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour back at each look, in every rank; a resumed run is a year behind the first one."""
    hours, begin = itertools.count(), time.time()
    monkeypatch.setattr(time, "time", lambda: begin - 3600 * next(hours))
    run, ranks = tmp_path / "run", {"world_size": world_size}
    short = training_line(store, run, "--epochs", 1)
    assert set(Job(tmp_path, *short, **ranks).end().codes) == {0}
    monkeypatch.setattr(time, "time", lambda: begin - 3600 * (8760 + next(hours)))
    ended = Job(tmp_path, *training_line(store, run, "--resume"), **ranks).end()
    assert set(ended.codes) == {0}, ended.err
    assert outcome(run)["predictions"] == uninterrupted(world_size)["predictions"]
    found = status.read_status(run)
    assert found.state == "done"
    assert found.checkpoint_age == 0


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_of_two_jobs_for_one_folder_one_is_refused_and_one_trains(
    times: int,
    store: Path,
    tmp_path: Path,
    uninterrupted: Uninterrupted,
    draw: random.Random,
) -> None:
    for turn in range(times):
        run, jobs = tmp_path / f"run{turn}", []
        for name in ("first", "second"):
            folder = tmp_path / f"{name}{turn}"
            folder.mkdir()
            jobs.append(Job(folder, *training_line(store, run)))
            time.sleep(draw.choice([0, 0, 0.05, 0.2]))
        ended = [job.end() for job in jobs]
        assert sorted(job.codes for job in ended) == [[0], [2]], ended
        [refused] = [job for job in ended if job.codes == [2]]
        assert refused.err.count("twofold: ") == 1
        # the other one may have ended by then
        assert "is in use by another job" in refused.err or "holds a run already" in refused.err
        assert outcome(run) == uninterrupted(1)


@pytest.mark.parametrize(("world_size", "value"), [(1, "inf"), (2, "nan")])
def test_a_loss_out_of_range_ends_training_with_the_checkpoint_before(
    world_size: int,
    value: str,
    store: Path,
    tmp_path: Path,
    uninterrupted: Uninterrupted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A label that is no number, in step 6 of one rank; without it the run ends as it would."""
    genuine, number = training.train_step, itertools.count(1)

    def poisoned(state: Any, batch: Any, experiment: Any, world_size: int) -> Any:
        if next(number) == 6 and dist.get_rank() == world_size - 1:
            batch.labels[0] = float(value)
        return genuine(state, batch, experiment, world_size)

    run, ranks = tmp_path / "run", {"world_size": world_size}
    with monkeypatch.context() as patched:
        patched.setattr(training, "train_step", poisoned)
        ended = Job(tmp_path, *training_line(store, run), **ranks).end()
    assert 2 in ended.codes, ended
    assert 0 not in ended.codes
    assert ended.err.count("twofold: ") == 1, ended.err
    assert "is not finite" in ended.err
    assert [file.suffix for file in run.glob("batch-00000006*")] == [".arrow"]
    assert (run / "checkpoints" / "last").resolve().name == "step-00000004"
    again = Job(tmp_path, *training_line(store, run, "--resume"), **ranks).end()
    assert set(again.codes) == {0}, again.err
    assert outcome(run) == uninterrupted(world_size)


def test_status_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", str(tmp_path / "none")]) == 2
    assert "is no run folder" in capsys.readouterr().err
