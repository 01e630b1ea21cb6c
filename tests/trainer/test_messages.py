"""What the command line says where a newcomer takes a wrong turn, and that it names the way out."""

from pathlib import Path

import pytest

from tests.trainer.command_lines import TINY, Job
from tests.trainer.test_cli_bad_input import told
from trainer import cli

HEADER = "user,item,time\n"


def test_a_log_without_some_splits_is_prepared_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "1,2,3\n1,3,4\n2,2,3\n2,5,9\n")
    store = tmp_path / "store"
    line = ["prepare", "table", "--path", str(tmp_path / "log.csv"), "--out", str(store)]
    assert cli.run([*line, "--test-fraction", "0.3"]) == 0
    told(capsys.readouterr().err, "warning", "no val requests", "--val-fraction")
    assert cli.run([*line, "--force", "--val-start", "4", "--test-start", "9"]) == 0
    told(capsys.readouterr().err, "warning", "no train requests", "--min-history")


def test_a_log_with_all_splits_is_prepared_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{user},{item},{item}" for user in (1, 2) for item in range(30)]
    (tmp_path / "log.csv").write_text(HEADER + "\n".join(rows) + "\n")
    line = ["--path", str(tmp_path / "log.csv"), "--out", str(tmp_path / "store"), "--sort"]
    assert cli.run(["prepare", "table", *line]) == 0
    assert "warning" not in capsys.readouterr().err


def test_training_on_a_store_without_a_split_says_how_to_prepare_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "1,2,3\n1,3,4\n")
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    cli.run(["prepare", "table", "--path", str(tmp_path / "log.csv"), "--out", store])
    capsys.readouterr()
    ended = Job(tmp_path, "train", "dare", "--data", store, "--out", run, *TINY).end()
    assert ended.codes == [2]
    told(ended.err, "requests: its log was too short", "twofold prepare table --help names")


def test_training_on_a_log_says_how_it_becomes_a_store(tmp_path: Path) -> None:
    log = tmp_path / "clicks.csv"
    log.write_text(HEADER)
    ended = Job(tmp_path, "train", "dare", "--data", log, "--out", tmp_path / "run").end()
    assert ended.codes == [2]
    told(ended.err, "clicks.csv is a file, not an event store")
    command = f"twofold prepare table --path {log} --user USER --item ITEM --time TIME --out "
    told(ended.err, command + "stores/clicks")


@pytest.mark.parametrize("words", [["--history-length", "200"], ["--history-length=200"]])
def test_the_demo_says_where_a_training_s_options_go(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["demo", "--processes=1", *words]) == 2
    hint = f"twofold demo --processes=1 -- {' '.join(words)}"
    told(capsys.readouterr().err, "--history-length is an option of the trainings", hint)


def test_resuming_what_never_began_says_that_it_starts_over(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = Job(tmp_path, "train", "dare", "--data", store, "--out", out, *TINY, "--resume").end()
    assert ended.codes == [0], ended.err
    assert f"No checkpoint at {out}; starting over." in ended.out.replace("\n", "")


def test_help_describes_the_size_of_a_synthetic_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prepare", "synthetic", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("--users INT", "--items INT", "--categories INT"):
        assert f"{flag} (default" not in words
