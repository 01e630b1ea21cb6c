"""``twofold demo``: the main job."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from trainer import demo
from trainer.commands.parsing import parse


class Order(NamedTuple):
    """What was asked for."""

    out: Path
    store: Path
    processes: int
    seed: int


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    _check_known(arguments[:end])
    order: Order = parse(_parser, "demo", arguments[:end])
    return demo.main(*order, overrides=arguments[end + 1 :])


def _check_known(arguments: Sequence[str]) -> None:
    """A training's option before the -- is a likely mistake, so it gets a hint."""
    known = {"help", *inspect.signature(_parser).parameters}
    for place, word in enumerate(arguments):
        name = word.split("=")[0]
        if name.startswith("--") and name.removeprefix("--").replace("-", "_") not in known:
            raise InputError(
                f"twofold demo has no option {name}. Options of the trainings go after a --: "
                f"twofold demo {' '.join([*arguments[:place], '--', *arguments[place:]])}"
            )


def _parser(
    out: Path = Path("runs/demo"),
    store: Path = Path("stores/completejourney"),
    processes: int = 2,
    seed: int = 1,
) -> Order:
    """Prepares a real log, trains DARE and its single-table twin on it, compares them on test.

    What follows a -- goes to both trainings:
    twofold demo --processes 1 -- --history-length 200 --epochs 2

    Args:
        out: Folder of the two runs, summary.json and report.html; what it held is replaced.
        store: Event store of completejourney; prepared if it is not there.
        processes: Ranks of each training job.
        seed: Seed of both trainings.
    """
    return Order(out, store, processes, seed)
