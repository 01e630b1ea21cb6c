"""Lines on stderr that name their rank: of many processes that share a terminal or a log."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def rank_tags() -> Iterator[None]:
    """Begins every line that Python writes to stderr with ``[rank 1] ``, where there are several
    ranks (torchrun's environment says so). What rank 0 tells the user goes to stdout, untagged.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    lines = TaggedLines(sys.stderr, f"[rank {os.environ.get('RANK', '?')}] ")
    with contextlib.closing(lines), contextlib.redirect_stderr(lines):
        yield


class TaggedLines(io.TextIOBase):
    """Hands lines on, each with a tag before it and in one piece: those of ranks do not mingle."""

    def __init__(self, target: TextIO, tag: str) -> None:
        self._target, self._tag = target, tag
        self._begun = ""
        """Of a line that is not complete."""

    def write(self, text: str) -> int:
        """Writes what lines are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._target.write("".join(f"{self._tag}{line}\n" for line in lines))
        return len(text)

    def close(self) -> None:
        """Writes what is left."""
        if self._begun:
            self.write("\n")
        super().close()

    def flush(self) -> None:
        """Of complete lines."""
        self._target.flush()

    def fileno(self) -> int:
        """For what writes past Python."""
        return self._target.fileno()

    def isatty(self) -> bool:
        """For what colours its words."""
        return self._target.isatty()
