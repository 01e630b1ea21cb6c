"""Names and words of a log that are HTML, formulas, paths: data to us, on every page."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.command_lines import TINY
from trainer import cli

EVIL = '<script>alert("&$x^2$")</script>'
COLUMN = "<b onload=alert(1)>$x_{"
"""Of a column: no / and no full stop."""


def write_log(file: Path, column: str, draw: random.Random) -> None:
    with file.open("w", newline="") as log:
        rows = csv.writer(log)
        rows.writerow(["user", "item", "time", "category", column, "label"])
        for user in range(30):
            for time in range(20):
                word = f"{EVIL}{draw.randrange(3)}"
                row = [f"{EVIL}{user}", f"{EVIL}{draw.randrange(40)}", time, word, word]
                rows.writerow([*row, draw.randrange(2)])


def pages(folder: Path) -> Iterator[tuple[str, str]]:
    for file in folder.rglob("*.html"):
        yield file.name, file.read_text()


@pytest.mark.soak
@pytest.mark.parametrize("experiment", ["dare", "deepfm"])
def test_no_page_runs_what_a_log_says(experiment: str, tmp_path: Path, draw: random.Random) -> None:
    log, store, run = tmp_path / "log.csv", tmp_path / "store", tmp_path / "<i>run"
    write_log(log, COLUMN, draw)
    text = ["--text", "user", "item", "category", COLUMN]
    columns = ["--category", "category", "--side", COLUMN, "--label", "label"]
    for line in (
        ["prepare", "table", "--path", log, "--out", store, *columns, *text, "--sort"],
        ["train", experiment, "--data", store, "--out", run, *TINY],
        ["analyze", run, "--data", store],
    ):
        # not a fork of this process, whose threads of Polars other tests may have started
        words = [sys.executable, "-m", "trainer.main", *map(str, line)]
        ended = subprocess.run(words, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    shown = dict(pages(tmp_path))
    assert len(shown) == 2
    for name, page in shown.items():
        assert "<script" not in page, name
        assert "<b onload" not in page, name
        assert "<i>run" not in page, name
    assert "&lt;script&gt;" in "".join(shown.values())


@pytest.mark.parametrize(
    "column", ["a.b", "a/b", "../up", "..", "a\\b", "a\x07b", "\x7f", "x" * 101]
)
def test_columns_that_no_file_can_be_called_are_refused(
    column: str, tmp_path: Path, draw: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log.csv", column, draw)
    paths = ["--path", str(tmp_path / "log.csv"), "--out", str(tmp_path / "store")]
    text = ["--text", "user", "item", column, "--side", column, "--sort"]
    assert cli.run(["prepare", "table", *paths, *text]) == 2
    err = capsys.readouterr().err
    assert err.count("twofold: ") == 1
    assert "must be renamed in the log" in err
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]
