"""``twofold launch ray`` without Ray: command lines, what workers and driver tell each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import InputError
from tests.trainer.small_runs import EXPERIMENT, ranks_of
from trainer import cli
from trainer.launch.office import Office
from trainer.launch.ray_train import Cluster, _check_room, _notes
from trainer.launch.worker import has_taken, resuming
from trainer.train import Trainer

TRAINING = ("--", "dare", "--data", "store", "--out", "run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["slurm", *TRAINING], "There is no launcher 'slurm'"),
        (["ray"], "What to train goes after a --"),
        (["ray", "--", "dear", "--data", "a", "--out", "b"], "Did you mean dare?"),
        (["ray", *TRAINING, "--resume", "--replace"], "exclude each other"),
        (["ray", *TRAINING, "--epochs", "-1"], "epochs must"),
        (["ray", "--workers", "0", *TRAINING], "--workers and --cpus must be 1 or more, got 0"),
        (["ray", "--retries", "-1", *TRAINING], "--retries must be 0 or more, got -1"),
        (["ray", "--port", "70000", *TRAINING], "--port must be from 0"),
        (["ray", "--address", "ray://a:1", *TRAINING], "auto or HOST:PORT of a head, got ray://"),
        (["ray", "--address", "127.0.0.1:1", *TRAINING], "answers at --address 127.0.0.1:1 (["),
    ],
)
def test_a_wrong_command_line_is_told_before_ray_is_started(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["launch", *words]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("twofold: ")
    assert told in message


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["launch", "--help"]) == 0
    assert cli.run(["launch", "ray", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--address", "--workers", "--gpus", "--cpus", "--retries", "--storage", "--env"):
        assert option in out


def test_only_a_run_that_an_attempt_of_the_job_has_taken_is_resumed(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    assert not has_taken(tmp_path, "job-1")
    for content, own in [({}, False), ({"job": "job-0"}, False), ({"job": "job-1"}, True)]:
        config.write_text(json.dumps(content))
        assert has_taken(tmp_path, "job-1") is own
    config.write_text('{"job": "job-1"')
    assert not has_taken(tmp_path, "job-1")


def test_the_trainer_writes_the_job_that_takes_a_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for job in ("job-0", "job-1"):
        monkeypatch.setenv("TWOFOLD_JOB", job)
        Trainer("small", EXPERIMENT, store, run, ranks_of(0, 1))._claim(False, job == "job-1")
        assert has_taken(run, job)
    assert not has_taken(run, "job-0")


def test_the_folder_of_notes_goes_unless_it_is_the_users(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for storage, folder in [(None, tmp_path / ".ray"), (given, given)]:
        with _notes(storage, tmp_path / "run") as notes:
            assert notes.parent == folder
            notes.mkdir(parents=True)
        assert not notes.exists()
    assert given.exists()
    assert not (tmp_path / ".ray").exists()


def test_a_resumed_attempt_replaces_nothing() -> None:
    assert resuming(["dare", "--replace", "--epochs", "2"]) == ["dare", "--epochs", "2", "--resume"]
    assert resuming(["dare", "--resume"]) == ["dare", "--resume"]


def test_the_office_counts_attempts_and_tells_of_those_after_the_first() -> None:
    office = Office(attempts=3)
    for resumes in (False, False, True):
        office.begin(resumes)
    assert office.read() == [
        ("stderr", "twofold: Attempt 2 of 3: starts from the beginning.\n"),
        ("stderr", "twofold: Attempt 3 of 3: goes on from the last checkpoint.\n"),
    ]
    assert office.read() == []
    assert not office.is_refused()
    office.refuse()
    assert office.is_refused()


def test_a_machine_that_is_too_small_is_refused_and_a_cluster_may_grow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there = {"CPU": 2.0}
    with pytest.raises(InputError, match="asks for 2 GPUs of 0 that this machine has"):
        _check_room(Cluster(workers=2, gpus=True), there)
    _check_room(Cluster(address="auto", workers=4), there)
    assert "asks for 4 CPUs of 2 that the cluster has now" in capsys.readouterr().err
    _check_room(Cluster(workers=2), there)
    assert capsys.readouterr().err == ""
