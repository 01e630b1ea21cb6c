"""What all sections of an analysis share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.report.sections import Panel

Json = dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    """The numbers of one run."""

    name: str
    color: int
    content: Json


class Table(NamedTuple):
    """Numbers of one run."""

    title: str
    head: list[str]
    rows: list[list[str]]
    caption: str


class Section(NamedTuple):
    """Pictures and numbers of one question."""

    title: str
    about: str
    notes: list[str]
    groups: list[list[Panel]]
    """Each begins a row."""
    tables: Sequence[Table] = ()


def percent(share: float | None, digits: int = 0) -> str:
    """A share as people read it."""
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def joined(sentences: Sequence[str]) -> str:
    """A paragraph."""
    return " ".join(sentence for sentence in sentences if sentence)
