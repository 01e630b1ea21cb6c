"""What a table of ``twofold sweep`` is: rows that differ in what its axis names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KindName = Literal["training", "step"]


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, or a step, once for each seed."""

    label: str
    """Names its run folders: letters, digits, ``.``, ``_`` and ``-``."""
    experiment: str
    """Key of :data:`trainer.experiments.EXPERIMENTS`, or of :data:`trainer.steps.kinds.STEPS`."""
    flags: tuple[str, ...] = ()
    """Of ``twofold train``, or of the step; they come last."""
    reference: str | None = None
    """Label of the row that this one is compared with; None: the table's."""
    line: str = ""
    """Rows of one line are joined in the picture over a numeric axis."""
    x: float | None = None
    """Where on that axis."""
    panel: str = ""
    """Lines of one panel share a picture; only of steps."""


@dataclass(frozen=True, kw_only=True)
class SweepTable:
    """Rows that differ in what the axis names."""

    sentence: str
    """The question, for ``--help`` and the report."""
    axis: str
    """What the rows differ in; on a numeric axis, its name."""
    reference: str
    """Label of the row that others are compared with."""
    rows: tuple[Row, ...]
    flags: tuple[str, ...] = ()
    """Of ``twofold train``, or of the step, for every row."""
    kind: KindName = "training"
    """What a cell does: it trains a model on a store, or measures a step (trainer/steps/)."""

    def reference_of(self, row: Row) -> Row | None:
        """The row that ``row`` is compared with; None for one that is compared with no other."""
        label = row.reference or self.reference
        return None if label == row.label else next(r for r in self.rows if r.label == label)


def flags_of(**values: object) -> tuple[str, ...]:
    """``history_length=200`` -> ``("--history-length", "200")``; ``__`` stands for a dot.

    A tuple gives a flag several words; True and False choose between ``--flag`` and ``--no-flag``.
    """
    words: list[str] = []
    for name, value in values.items():
        *parents, last = name.replace("_", "-").split("--")
        if isinstance(value, bool):
            last, value = last if value else f"no-{last}", ()
        words.append("--" + ".".join([*parents, last]))
        words += map(str, value if isinstance(value, tuple) else (value,))
    return tuple(words)
