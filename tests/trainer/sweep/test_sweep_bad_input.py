"""What a user can get wrong in ``twofold sweep``: one message, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.sweep.small_sweeps import sweep
from trainer import cli
from trainer.sweep.sweep import locked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--processes", "-1"], "--processes must be at least 1, got -1"),
        (["--rows", "tall"], "--rows tall names no row. There are: wide, narrow"),
        (["--report"], "holds no sweep"),
        (["--", "--seed", "3"], "Seeds are those of --seeds"),
        (["--", "--model.top_k=3"], "--model.top-k is set by rows of this table (narrow)"),
        (["--", "--history-length", "0"], "Row wide: history_length must be positive"),
    ],
)
def test_options_are_refused(
    store: Path, tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["sweep", "small", "--data", str(store), "--out", str(out), *options]
    assert cli.run(command) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_an_unknown_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sweep", "topk", "--data", "x", "--out", "y"]) == 2
    assert "There is no table 'topk'. Did you mean top-k?" in capsys.readouterr().err


def test_a_missing_store_is_refused(
    tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(sweep(tmp_path / "none", tmp_path / "out")) == 2
    assert "no event store" in capsys.readouterr().err


def test_a_folder_that_is_no_sweep_is_refused(
    store: Path, tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert cli.run(sweep(store, tmp_path)) == 2
    assert "is not empty and holds no sweep" in capsys.readouterr().err
    assert cli.run(sweep(store, tmp_path / "thesis.txt")) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"table": "top-k"}', "holds a sweep of top-k, not of small"), ("{", "is damaged")],
)
def test_a_folder_of_another_sweep_is_refused(
    store: Path, tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str],
    content: str, message: str,
) -> None:  # fmt: skip
    (tmp_path / "sweep.json").write_text(content)
    assert cli.run(sweep(store, tmp_path)) == 2
    assert message in capsys.readouterr().err


def test_two_sweeps_cannot_share_a_folder(
    store: Path, tmp_path: Path, small_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path):
        assert cli.run(sweep(store, tmp_path)) == 2
    assert "Another sweep is at work" in capsys.readouterr().err


def test_help_names_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sweep", "--help"]) == 0
    assert "What do more events of the past bring" in capsys.readouterr().out
    assert cli.run(["sweep", "top-k", "--help"]) == 0
    assert "--keep-checkpoints" in capsys.readouterr().out
