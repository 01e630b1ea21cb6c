"""What a user sees while a job runs."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from trainer import progress
from trainer.progress import Display, SignsOfLife


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the start of the machine, to be set: it may have started just now."""
    now = [0.5]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_begin_at_once_and_come_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Display(shown=True) as display:
        for step in range(1, 31):
            display.update("train", step, 30, "loss 0.5")
            clock[0] += 1
    assert capsys.readouterr().out.splitlines() == [
        f"train {step}/30 loss 0.5" for step in (1, 11, 21)
    ]


def test_an_evaluation_is_told_of_only_where_it_lasts(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Display(shown=True) as display:
        display.update("train", 1, 30)
        for seconds in (1, 4):
            for batch in range(1, 8):
                display.update("val", batch, 7)
                clock[0] += seconds
        display.update("train", 2, 30)
    # the second takes 28 seconds
    shown = ["train 1/30", "val 4/7", "val 7/7", "train 2/30"]
    assert capsys.readouterr().out.splitlines() == shown


def test_signs_of_life_keep_the_step_through_an_evaluation(
    tmp_path: Path, clock: list[float]
) -> None:
    signs = SignsOfLife(tmp_path)
    with Display(shown=False, signs=signs) as display:
        display.update("train", 20, 30)
        clock[0] += 4
        display.update("train", 22, 30)
        clock[0] += 0.5
        display.update("val", 1, 7)  # too soon for a new sign
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["doing"], found["done"], found["total"]) == ("train", 22, 30)
    signs.update("val", 7, 7)  # ends are always told
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["doing"], found["done"], found["total"]) == ("val", 7, 7)
    assert (found["first_step"], found["step"], found["steps"]) == (20, 22, 30)
    assert found["seconds_since_first_step"] == 4
    assert found["process"] == os.getpid()
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(shown=False) as display:
        display.print("hello")
        display.update("train", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_moves_on_a_terminal_and_leaves_no_trace() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        os.environ.update(TERM="xterm", COLUMNS="100")
        with Display(shown=True) as display:
            display.update("train", 1, 2, "loss 0.7")
            display.print("step 1")
            display.update("train", 2, 2, "loss 0.5")
            display.print("done")
        sys.stdout.flush()
        os._exit(0)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert os.waitpid(pid, 0)[1] == 0
    text = shown.decode()
    assert "1/2" in text
    assert "loss 0.7" in text
    assert "━" in text
    # the cursor is back, and the bar's line is erased
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text.rsplit("\x1b[2K", 1)[1]).strip() == ""
