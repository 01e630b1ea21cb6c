"""``twofold analyze RUN``: what a trained run follows, what that is worth, where it is right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from data.source import Split
from trainer.analyze import analyze_run
from trainer.checkpoint import Link
from trainer.commands.parsing import parse
from trainer.processes import process_group


class Order(NamedTuple):
    """What was asked for."""

    run: Path
    data: Path | None
    out: Path | None
    checkpoint: Link
    split: Split
    beside: tuple[Path, ...]


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    order: Order = parse(_parser, "analyze", arguments)
    with process_group() as ranks:
        analyze_run(*order, ranks)
    return 0


def _default(words: str) -> object:
    return tyro.conf.arg(help_behavior_hint=f"(default: {words})")


def _parser(
    run: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, _default("where the run's command found it")] = Path(),
    out: Annotated[Path, _default("the run folder")] = Path(),
    checkpoint: Link = "best",
    split: Split = "test",
    beside: tuple[Path, ...] = (),
) -> Order:
    """Measures what a trained run follows and where it is right.

    Of a model that reads histories: what its search finds and its attention follows. Of a model
    over fields alone: what each field is worth, by permuting it, and its filters by pair of fields.
    Of both: metrics by user, by category and by the rarest id of a row.

    Example: twofold analyze runs/dare --beside runs/twin/analysis-best.json

    Args:
        run: Run folder. Train it with --record-gradients 100 for the section on gradients.
        data: The event store that the run was trained on.
        out: Folder for the report and its numbers.
        checkpoint: best: highest validation AUC; last: end of training.
        split: Requests that are judged.
        beside: Numbers of other analyses (analysis-*.json), drawn beside this one's.
    """
    here = Path()
    return Order(
        run, None if data == here else data, None if out == here else out, checkpoint, split, beside
    )
