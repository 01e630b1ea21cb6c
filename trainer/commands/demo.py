"""``twofold demo``: the main job."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from trainer import demo
from trainer.commands.parsing import parse
from trainer.experiment import Experiment


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
    _refuse_options_of_trainings(arguments[:end])
    order: Order = parse(_parser, "demo", arguments[:end])
    return demo.main(*order, overrides=arguments[end + 1 :])


def _refuse_options_of_trainings(arguments: Sequence[str]) -> None:
    """Before the -- they are a likely mistake; other unknown options are tyro's to tell."""
    own = set(inspect.signature(_parser).parameters)
    of_trainings = {field.name for field in dataclasses.fields(Experiment)} - own
    for place, word in enumerate(arguments):
        name = word.split("=")[0]
        if name.removeprefix("--").split(".")[0].replace("-", "_") in of_trainings:
            raise InputError(
                f"{name} is an option of the trainings, which go after a --: "
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
