"""Lines of several ranks in one log."""

from __future__ import annotations

import io
import sys
import traceback

import pytest

from trainer.rank_tags import TaggedLines, rank_tags


def test_every_line_is_tagged_and_written_in_one_piece() -> None:
    target = io.StringIO()
    pieces: list[str] = []
    target.write = pieces.append  # type: ignore[method-assign]
    lines = TaggedLines(target, "[rank 3] ")
    for text in ("one", " line\nand", "", "\n\nlast"):
        lines.write(text)
    assert pieces == ["[rank 3] one line\n", "[rank 3] and\n[rank 3] \n"]
    lines.close()
    assert pieces[-1] == "[rank 3] last\n"


def test_tracebacks_and_messages_of_a_rank_are_tagged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    before = sys.stderr
    with rank_tags():
        traceback.print_exception(OSError("the disk is gone"))
        print("half", file=sys.stderr, end="")
    assert sys.stderr is before
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["[rank 2] OSError: the disk is gone", "[rank 2] half"]


def test_a_single_process_is_not_tagged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with rank_tags():
        print("plain", file=sys.stderr)
    assert capsys.readouterr().err == "plain\n"
