"""``twofold prepare`` of tables without users: what it prints and refuses."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from trainer import cli


def write_log(file: Path, rows: int) -> Path:
    draw = random.Random(0)
    lines = []
    for _ in range(rows):
        ids = [f"{draw.randrange(9):08x}" for _ in range(26)]
        cells = [str(draw.randrange(2)), *["7"] * 13, *ids]
        lines.append("\t".join(cells) + "\n")
    file.write_text("".join(lines))
    return file


def test_rows_columns_and_ids_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(write_log(tmp_path / "train.txt", 1234))
    options = ["--preparation", "x4", "--split", "temporal"]
    store = str(tmp_path / "store")
    assert cli.run(["prepare", "criteo", "--path", log, "--out", store, *options]) == 0
    ended = capsys.readouterr()
    words = " ".join(ended.out.split())
    assert "criteo: rows without histories" in words
    assert "rows 1,234 987 123 124" in words
    # 13 integers of one value and 26 columns of nine; each with unknown and missing
    assert f"columns of ids 39 ids {13 * 3 + 26 * 11}" in words
    assert "columns of numbers 0" in words
    assert "history" not in words.replace("histories", "")
    assert "warning" not in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--split-ratio 8 0 1", "split_ratio is 8 0 1"),
        ("--split-ratio 8 1", "--split-ratio"),
        ("--split sometimes", "--split"),
        ("--hash-buckets 9 --min-count 2", "exclude each other"),
        ("--split files", "split_ratio 7 2 1 is of 10 files, but 1 are given"),
    ],
)
def test_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    log = write_log(tmp_path / "train.txt", 20)
    line = ["prepare", "criteo", "--path", str(log), "--out", str(tmp_path / "store")]
    assert cli.run([*line, *options.split()]) == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [log]
