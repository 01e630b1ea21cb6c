"""How far a run is, read from its files while its job goes on."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data.errors import InputError
from tests.trainer.command_lines import TINY, Job
from tests.trainer.conftest import MakeRun
from tests.trainer.small_runs import EVALUATIONS, STEPS, metrics_lines, read
from trainer import cli
from trainer.status import in_use, read_status, read_sweep
from trainer.status_tables import status_table

NOW = 1_700_000_000
CONFIG = {
    "experiment": "dare",
    # 3 epochs of ceil(1,000 / 64) = 16 batches
    "config": {"requests_per_batch": 64, "epochs": 3},
    "data": {"source": "synthetic", "requests": {"train": 1000, "val": 10, "test": 10}},
}
TRAINED = {
    "kind": "train", "step": 20, "loss": 0.5, "samples": 900, "samples_per_second": 30.0,
    "input_share": 0.25, "memory": 2**20,
}  # fmt: skip
SIGNS = {
    "host": "node7", "process": 4242, "doing": "train", "done": 22, "total": 48,
    "first_step": 10, "step": 22, "steps": 48, "seconds_since_first_step": 60.0,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that began 100 s ago, whose last sign is 5 s old; nobody holds its lock."""
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    write(tmp_path / "config.json", CONFIG, age=100)
    write(tmp_path / "progress.json", SIGNS, age=5)
    lines = [{"kind": "eval", "split": "val", "step": 16, "auc": 0.7, "logloss": 0.6}, TRAINED]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "train", "step": 9')
    (tmp_path / ".lock").touch()
    return tmp_path


@pytest.fixture
def held(run: Path) -> Iterator[Path]:
    """The same, whose job is alive."""
    with (run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield run


def write(file: Path, content: Any, age: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    os.utime(file, (NOW - age, NOW - age))


def test_a_running_job_is_as_far_as_its_last_sign(held: Path) -> None:
    found = read_status(held)
    assert (found.state, found.doing, found.step, found.steps) == ("running", "train", 22, 48)
    assert (found.host, found.process, found.silent_seconds) == ("node7", 4242, 5)
    # 12 steps in 60 s; 26 are left, and 5 s have gone since
    assert found.seconds_left == pytest.approx(26 * 5 - 5)
    assert (found.loss, found.samples, found.samples_per_second) == (0.5, 900, 30)
    assert (found.input_share, found.memory) == (0.25, 2**20)
    assert found.validation == ({"step": 16, "auc": 0.7, "logloss": 0.6},)
    assert found.checkpoint_step is None


@pytest.mark.parametrize(
    ("signs", "doing", "share"),
    [
        ({"doing": "val", "done": 3, "total": 12}, "val", 0.25),
        ({"doing": "val", "done": 12, "total": 12}, "train", None),
        ({"doing": "test", "done": 12, "total": 12}, "test", 1.0),
    ],
)
def test_an_evaluation_that_is_over_is_training_again(
    held: Path, signs: dict[str, Any], doing: str, share: float | None
) -> None:
    write(held / "progress.json", SIGNS | signs, age=1)
    found = read_status(held)
    assert (found.doing, found.evaluated_share) == (doing, share)
    assert (found.seconds_left is None) == (doing == "test")


def test_signs_of_the_job_before_this_one_do_not_count(held: Path) -> None:
    write(held / "progress.json", SIGNS, age=1000)
    found = read_status(held)
    assert (found.state, found.doing, found.host, found.silent_seconds) == (
        "running", None, None, 100,
    )  # fmt: skip
    assert found.seconds_left is None


def test_a_clock_that_was_set_back_makes_nothing_younger_than_new(held: Path) -> None:
    write(held / "progress.json", SIGNS, age=-7200)
    write(held / "checkpoints" / "last" / "position.json", {"step": 16, "best_step": 8}, age=-7300)
    found = read_status(held)
    assert (found.silent_seconds, found.checkpoint_age) == (0, 0)
    assert (found.checkpoint_step, found.best_step) == (16, 8)


def test_a_run_whose_job_is_gone_is_stopped_and_a_tested_one_done(run: Path) -> None:
    write(run / "summary.json", {"steps": 16, "auc": 0.8}, age=50)  # of fewer epochs, before
    stopped = read_status(run)
    assert (stopped.state, stopped.step, stopped.doing, stopped.test_auc) == (
        "stopped", 20, None, None,
    )  # fmt: skip
    write(run / "summary.json", {"steps": 20, "auc": 0.8}, age=1)
    assert (read_status(run).state, read_status(run).test_auc) == ("done", 0.8)


def test_checkpoints_elsewhere_are_told_of(run: Path) -> None:
    write(run / "config.json", CONFIG | {"checkpoints": "s3://bucket/mine"}, age=100)
    status = read_status(run)
    assert status.checkpoints == "s3://bucket/mine"
    console = Console(width=100)
    with console.capture() as shown:
        console.print(status_table(status))
    assert "at s3://bucket/mine" in shown.get()


def test_asking_takes_the_lock_from_nobody(run: Path) -> None:
    assert not in_use(run)
    with (run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert in_use(run)
        assert in_use(run)
    assert not in_use(run)
    assert not in_use(run / "nowhere")


def test_a_sweep_is_its_trainings(run: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name, config in (
        ("b", CONFIG),
        ("a", CONFIG),
        ("topk", CONFIG | {"kind": "topk"}),
        ("step", {"of": "one step"}),
    ):
        write(sweep / "cells" / name / "config.json", config, age=1)
    assert [Path(cell.run).name for cell in read_sweep(sweep)] == ["a", "b"]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run folder.*twofold train or of twofold sweep"):
        read_status(tmp_path)
    write(tmp_path / "config.json", CONFIG | {"kind": "topk"}, age=0)
    with pytest.raises(InputError, match="a run of twofold topk"):
        read_status(tmp_path)


def test_a_finished_run_says_what_its_files_say(finished: MakeRun) -> None:
    run = finished(1)
    found, summary = read_status(run), read(run, "summary.json")
    assert (found.state, found.step, found.steps) == ("done", STEPS, STEPS)
    assert found.samples == summary["train_samples"]
    assert (found.loss, found.test_auc) == (summary["loss_last"], summary["auc"])
    assert [e["step"] for e in found.validation] == [*EVALUATIONS]
    assert found.best_step == summary["best_step"]
    assert all(0 <= line["input_share"] <= 1 for line in json_lines(run))
    assert all(2**24 < line["memory"] < 2**40 for line in json_lines(run))
    assert metrics_lines(run)  # what no clock says stays comparable


def json_lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def test_status_of_a_living_job_at_the_command_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    endless = ["--epochs", 100_000, "--patience", 100_000, "--evaluate-every", 4]
    job = Job(tmp_path, "train", "dare", "--data", store, "--out", run, *TINY, *endless)
    job.wait_until((run / "checkpoints" / "last" / "position.json").exists)
    job.wait_until((run / "progress.json").exists)
    try:
        assert cli.run(["status", str(run), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["state"], found["process"]) == ("running", job.ranks[0])
        assert found["steps"] == 4 * 100_000
        assert cli.run(["status", str(run)]) == 0
        shown = capsys.readouterr().out
        assert "running: " in shown
        assert f"(process {job.ranks[0]} on " in " ".join(shown.split())
    finally:
        job.signal(9)
        job.end()
    assert cli.run(["status", str(run), "--watch"]) == 0  # nothing runs: one look
    shown = " ".join(capsys.readouterr().out.split())
    assert "stopped; the same command with --resume goes on" in shown
    assert cli.run(["status", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
