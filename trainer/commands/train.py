"""``twofold train EXPERIMENT``: trains an experiment on a store."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from data.errors import InputError
from trainer.commands.parsing import NO_PREFIX, parse_one_of
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.processes import process_group
from trainer.train import Trainer


class Order(NamedTuple):
    """What was asked for."""

    name: str
    experiment: Experiment
    data: Path
    out: Path
    resume: bool
    replace: bool


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    parsers = {name: _parser(name, make) for name, make in EXPERIMENTS.items()}
    order: Order = parse_one_of(parsers, "train", arguments)
    with process_group() as ranks:
        trainer = Trainer(order.name, order.experiment, order.data, order.out, ranks)
        trainer.main(resume=order.resume, replace=order.replace)
    return 0


def _parser(name: str, make: Callable[[], Experiment]) -> Callable[..., Order]:
    default = make()

    def parser(
        data: Path,
        out: Path,
        resume: bool = False,
        replace: bool = False,
        experiment: Annotated[Experiment, NO_PREFIX] = default,
    ) -> Order:
        if resume and replace:
            raise InputError("--resume and --replace exclude each other.")
        return Order(name, experiment, data, out, resume, replace)

    parser.__doc__ = f"""{make.__doc__}

    Args:
        data: Event store made by twofold prepare.
        out: Run folder.
        resume: Continue the run at --out from its last checkpoint, if it has one.
        replace: Delete the run at --out, if there is one, and start over.
        experiment: Overrides.
    """
    return parser
