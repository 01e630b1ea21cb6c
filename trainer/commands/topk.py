"""``twofold topk MODEL``: trains a model and ranks the whole catalogue for each user."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro

from data.errors import InputError
from trainer.commands.parsing import choose, first_paragraph, parse, print_choices, wants_help
from trainer.topk.compare import compare_runs
from trainer.topk.experiment import MODELS, TopKExperiment
from trainer.topk.train import TopKTrainer

USAGE = "twofold topk MODEL --data STORE --out RUN [options]"
COMPARE = "compare"

FLAGS = """Learns from what users bought before the validation period alone, and ranks the whole
catalogue for what they bought in it (which chooses the epoch) and in the test period.

Args:
    data: Event store made by twofold prepare, split by time.
    out: Run folder.
    replace: Delete the run at --out, if there is one, and start over.
    experiment: Overrides.
"""


class Order(NamedTuple):
    """What was asked for."""

    experiment: TopKExperiment
    data: Path
    out: Path
    replace: bool


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    if wants_help(arguments):
        sentences = {name: first_paragraph(make.__doc__) for name, make in MODELS.items()}
        sentences[COMPARE] = "Compares runs: means over seeds, paired differences over users."
        more = "Options: twofold topk lightgcn --help. Graph models: pip install 'twofold[graph]'."
        does = "Ranks the whole catalogue for each user: precision, recall, NDCG at 5, 10, 20."
        print_choices(does, USAGE, sentences, more)
        return 0
    name = choose("model", [*MODELS, COMPARE], arguments, USAGE)
    if name == COMPARE:
        compare_runs(*parse(_compare_parser, f"topk {COMPARE}", arguments[1:]))
        return 0
    order: Order = parse(_parser(name, MODELS[name]), f"topk {name}", arguments[1:])
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        raise InputError(
            f"twofold topk runs in one process, but was started in {processes}: its tables are "
            "not sharded. Start it without torchrun."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = TopKTrainer(
        name, order.experiment, order.data, order.out, device, replace=order.replace
    )
    trainer.main()
    return 0


def _parser(name: str, make: Callable[[], TopKExperiment]) -> Callable[..., Order]:
    default = make()
    kind = TopKExperiment[type(default.model)]

    def parser(
        data: Path,
        out: Path,
        replace: tyro.conf.FlagCreatePairsOff[bool] = False,
        experiment: Annotated[kind, tyro.conf.arg(name="")] = default,
    ) -> Order:
        return Order(experiment, data, out, replace)

    about = inspect.cleandoc(make.__doc__ or "")
    example = f"Example: twofold topk {name} --data stores/completejourney --out runs/{name}"
    parser.__doc__ = f"{about}\n\n{example}\n\n{FLAGS}"
    return parser


def _compare_parser(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path | None = None
) -> tuple[tuple[Path, ...], Path | None]:
    """Compares top-K runs of one store.

    Runs that differ in the seed alone are one row: the mean over them, and the paired difference
    to the first row over the same users.

    Example: twofold topk compare runs/popular runs/lightgcn-1 runs/lightgcn-2

    Args:
        runs: Run folders of twofold topk; the first is what the others are compared with.
        out: Folder for topk.csv and topk.md, if they are wanted.
    """
    return runs, out
