"""``twofold launch ray`` without Ray: command lines, what workers and driver tell each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from trainer import cli
from trainer.launch.office import Office
from trainer.launch.ray_train import Cluster, _check_room
from trainer.launch.worker import ending, resuming

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
        (["ray", "--address", "127.0.0.1:1", *TRAINING], "No Ray cluster answers at 127.0.0.1:1"),
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


def test_an_attempt_after_the_first_resumes_and_replaces_nothing() -> None:
    assert resuming(["dare", "--replace", "--epochs", "2"]) == ["dare", "--epochs", "2", "--resume"]
    assert resuming(["dare", "--resume"]) == ["dare", "--resume"]


def test_the_office_counts_attempts_and_tells_of_those_after_the_first() -> None:
    office = Office(attempts=3)
    assert [office.begin(), office.begin()] == [False, True]
    told = "twofold: Attempt 2 of 3: goes on from the last checkpoint.\n"
    assert office.read() == [("stderr", told)]
    assert office.read() == []
    assert not office.is_refused()
    office.refuse()
    assert office.is_refused()


def test_an_end_is_told_by_signal_or_code() -> None:
    assert ending(-9) == "was ended by SIGKILL"
    assert ending(1) == "failed with exit code 1"


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
