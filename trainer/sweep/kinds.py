"""What the cells of a table are: trainings, or measurements of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trainer import formats
from trainer.sweep.cells import Cell, Training
from trainer.sweep.report import Page, training_page
from trainer.sweep.results import Record, cell_record
from trainer.sweep.rows import KindName, SweepTable
from trainer.sweep.steps import Measurement, step_page, step_record


class Kind(NamedTuple):
    """How a sweep makes cells and what it makes of them."""

    cell: type[Cell]
    record: Callable[[Cell], Record]
    """A done cell's line of ``results.csv``."""
    outcome: Callable[[Record], str]
    """A record in a few words."""
    page: Callable[[SweepTable, Sequence[Cell], Mapping[str, Record]], Page]


KINDS: dict[KindName, Kind] = {
    "training": Kind(
        Training,
        cell_record,
        lambda record: f"test AUC {formats.decimal(record['test_auc'])}",
        training_page,
    ),
    "step": Kind(
        Measurement,
        step_record,
        lambda record: f"{formats.decimal(record['milliseconds'], 1)} ms a step",
        step_page,
    ),
}
"""By :attr:`trainer.sweep.rows.SweepTable.kind`."""
