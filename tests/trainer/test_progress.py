"""What a user sees while a job runs."""

from __future__ import annotations

import os
import pty
import re
import sys

import pytest

from trainer import progress
from trainer.progress import Display


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
