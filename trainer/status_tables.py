"""What ``twofold status`` shows on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from trainer import formats
from trainer.status import RunStatus
from trainer.tables import plain_table

LAST_EVALUATIONS = 5
"""That are shown; JSON has all."""
Found = RunStatus | list[RunStatus]
"""Of a run, or of the cells of a sweep."""


def status_table(found: Found) -> Table:
    """A line for each fact of a run, or for each cell of a sweep."""
    return _sweep_table(found) if isinstance(found, list) else _run_table(found)


def _run_table(status: RunStatus) -> Table:
    table = plain_table(f"{status.run}: {status.experiment} on {status.source}")
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in (
        ("state", _state(status)),
        ("step", _step(status)),
        ("loss", formats.decimal(status.loss)),
        ("speed", _speed(status)),
        ("checkpoint", _checkpoint(status)),
        ("validation", "\n".join(map(_evaluation, status.validation[-LAST_EVALUATIONS:]))),
        ("test AUC", formats.decimal(status.test_auc)),
    ):
        table.add_row(name, Text(text if text.strip(f" {formats.MISSING}") else formats.MISSING))
    return table


def _state(status: RunStatus) -> str:
    if status.state == "done":
        return "done"
    if status.state == "stopped":
        return "stopped; the same command with --resume goes on"
    where = f" (process {status.process} on {status.host})" if status.host else ""
    if status.doing is None:
        return f"running: starting since {formats.duration(status.silent_seconds)}"
    doing = _DOING.get(status.doing, status.doing)
    if status.evaluated_share is not None:
        doing += f", {status.evaluated_share:.0%} done"
    return f"running: {doing}; last sign {formats.duration(status.silent_seconds)} ago{where}"


_DOING = {"train": "training", "val": "validating", "test": "testing"}


def _step(status: RunStatus) -> str:
    text = formats.count(status.step)
    if status.steps is not None:
        text += f" of {formats.count(status.steps)}"
    if status.seconds_left is not None:
        text += f", about {formats.duration(status.seconds_left)} left unless it stops early"
    return text


def _speed(status: RunStatus) -> str:
    if status.samples_per_second is None:
        return formats.MISSING
    text = f"{formats.count(status.samples_per_second)} samples/s"
    if status.input_share is not None:
        text += f", {status.input_share:.0%} of the time waiting for input"
    return text + (f"; {formats.size(status.memory)} held" if status.memory is not None else "")


def _checkpoint(status: RunStatus) -> str:
    if status.checkpoints:
        return f"at {status.checkpoints}"
    if status.checkpoint_step is None:
        return "none yet"
    text = f"of step {formats.count(status.checkpoint_step)}"
    text += f", {formats.duration(status.checkpoint_age)} old"
    return text + (f"; best so far: step {formats.count(status.best_step)}")


def _evaluation(record: dict[str, float | None]) -> str:
    return (
        f"step {formats.count(record['step'])}: AUC {formats.decimal(record['auc'])}, "
        f"log loss {formats.decimal(record['logloss'])}"
    )


def _sweep_table(cells: list[RunStatus]) -> Table:
    count = sum(cell.state == "done" for cell in cells)
    table = plain_table(f"{count} of {len(cells)} cells that have begun are done")
    table.add_column("cell", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("step", "of", "loss", "samples/s", "best AUC", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        table.add_row(
            Text(Path(cell.run).name),
            cell.state,
            formats.count(cell.step),
            formats.count(cell.steps),
            formats.decimal(cell.loss),
            formats.count(cell.samples_per_second),
            formats.decimal(max((e["auc"] for e in cell.validation if e["auc"]), default=None)),
            formats.duration(cell.seconds_left),
        )
    table.caption = "AUC: on the validation split."
    return table
