"""``twofold evaluate RUN``: scores a trained run's checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from data.source import Split
from trainer.checkpoint import Link
from trainer.commands.parsing import parse
from trainer.evaluate import evaluate_run
from trainer.processes import process_group


class Order(NamedTuple):
    """What was asked for."""

    run: Path
    data: Path
    split: Split
    checkpoint: Link


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    order: Order = parse(_parser, "evaluate", arguments)
    with process_group() as ranks:
        evaluate_run(order.run, order.data, order.split, order.checkpoint, ranks)
    return 0


def _parser(
    run: Annotated[Path, tyro.conf.Positional],
    data: Path,
    split: Split = "test",
    checkpoint: Link = "best",
) -> Order:
    """Scores a trained run's checkpoint on a split, at any world size.

    Example: twofold evaluate runs/demo/dare --data stores/completejourney --split val

    Args:
        run: Run folder.
        data: The event store that the run was trained on.
        split: Which requests.
        checkpoint: best: highest validation AUC; last: end of training.
    """
    return Order(run, data, split, checkpoint)
