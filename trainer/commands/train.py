"""``twofold train EXPERIMENT``: trains an experiment on a store."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from data.errors import InputError
from trainer.commands.parsing import choose, first_paragraph, parse, print_choices, wants_help
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.processes import process_group
from trainer.reliability import Reliability
from trainer.train import Trainer

USAGE = "twofold train EXPERIMENT --data STORE --out RUN [options]"

FLAGS = """Args:
    data: Event store made by twofold prepare.
    out: Run folder.
    resume: Continue the run at --out from its last checkpoint, if it has one.
    replace: Delete the run at --out, if there is one, and start over.
    plan: Follow this plan.json of twofold plan, instead of choosing one.
    profile: Trace the training steps FIRST:LAST, e.g. 100:110, into RUN/profile/rank0.json.gz.
    experiment: Overrides.
    reliability: Checkpoints and restarts.
"""
_RELIABILITY = Reliability()


class Order(NamedTuple):
    """What was asked for."""

    experiment: Experiment
    data: Path
    out: Path
    resume: bool
    replace: bool
    plan: Path | None
    profile: str | None
    reliability: Reliability


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    if wants_help(arguments):
        sentences = {name: first_paragraph(make.__doc__) for name, make in EXPERIMENTS.items()}
        more = "All that can be overridden in an experiment: twofold train dare --help"
        print_choices("Trains an experiment on an event store.", USAGE, sentences, more)
        return 0
    name, order = read_order(arguments)
    with process_group(order.reliability.peer_timeout) as ranks:
        trainer = Trainer(
            name,
            order.experiment,
            order.data,
            order.out,
            ranks,
            order.plan,
            order.profile,
            order.reliability,
        )
        trainer.main(resume=order.resume, replace=order.replace)
    return 0


def read_order(arguments: Sequence[str]) -> tuple[str, Order]:
    """The experiment's name and what is asked of it; what is wrong with a command line is told."""
    name = choose("experiment", EXPERIMENTS, arguments, USAGE)
    order: Order = parse(_parser(name, EXPERIMENTS[name]), f"train {name}", arguments[1:])
    if order.resume and order.replace:
        raise InputError("--resume and --replace exclude each other: give one of them.")
    return name, order


def _parser(name: str, make: Callable[[], Experiment]) -> Callable[..., Order]:
    default = make()

    def parser(
        data: Path,
        out: Path,
        resume: tyro.conf.FlagCreatePairsOff[bool] = False,
        replace: tyro.conf.FlagCreatePairsOff[bool] = False,
        plan: Path | None = None,
        profile: str | None = None,
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
        reliability: Annotated[Reliability, tyro.conf.arg(name="")] = _RELIABILITY,
    ) -> Order:
        return Order(experiment, data, out, resume, replace, plan, profile, reliability)

    about = inspect.cleandoc(make.__doc__ or "").replace("``", "")
    example = f"Example: twofold train {name} --data stores/mine --out runs/{name} --model.top-k 50"
    parser.__doc__ = f"{about}\n\n{example}\n\n{FLAGS}"
    return parser
