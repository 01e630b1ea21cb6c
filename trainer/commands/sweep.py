"""``twofold sweep TABLE``: a table of trainings or of measured steps, rows times seeds."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import tyro

from trainer.commands.parsing import choose, parse, print_choices, wants_help
from trainer.sweep.sweep import Order, Sweep
from trainer.sweep.tables import TABLES

USAGE = "twofold sweep TABLE [--data STORE] --out DIR [options] [-- flags of every cell]"

SECTIONS = {
    "training": """What follows a -- goes to every training, before the row's own flags:
    twofold sweep top-k --data stores/mine --out runs/top-k -- --history-length 800

    Done cells are skipped and half-done ones continued: the same command goes on with a sweep that
    was stopped. Exit code 1 if a cell failed.""",
    "step": """Cells measure a step, each in a process of its own: they train nothing and read no
    store. What follows a -- goes to every measurement, before the row's own flags:
    twofold sweep ids --out runs/ids -- --batch 512 --repeats 20; -- --help lists them.

    Done cells are skipped: the same command goes on with a sweep that was stopped. Exit code 1 if
    a cell failed.""",
}
"""Of ``--help``, by :attr:`trainer.sweep.rows.SweepTable.kind`."""
ARGUMENTS = """
    Args:
        data: Event store made by twofold prepare.
        out: Folder of the sweep: cells, results.csv, table.csv, table.md, report.html.
        seeds: Cells of each row, with the seeds 1, 2, ...
        jobs: Cells at once; each gets its share of the cores.
        processes: Ranks of each training.
        rows: Only rows whose labels match one of these shell patterns.
        list: Print the cells, their states and commands, and do nothing.
        report: Write the results of the cells that are done, and make no others.
        replace: Make anew cells that were made with other settings or data.
        keep_checkpoints: Do not delete the checkpoints of a cell that is done.
"""


class Asked(NamedTuple):
    """What to do, and of which sweep."""

    order: Order
    list: bool
    report: bool


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    if wants_help(arguments):
        sentences = {name: table.sentence for name, table in TABLES.items()}
        more = "Options: twofold sweep dare-table --help. Its rows: --list."
        does = "Runs a table of trainings, or of steps to be measured, rows times seeds."
        print_choices(does, USAGE, sentences, more)
        return 0
    name = choose("table", TABLES, arguments, USAGE)
    rest = list(arguments[1:])
    end = rest.index("--") if "--" in rest else len(rest)
    asked: Asked = parse(_parser(name, tuple(rest[end + 1 :])), f"sweep {name}", rest[:end])
    sweep = Sweep(asked.order, ["twofold", "sweep", *arguments])
    if asked.list:
        sweep.list()
        return 0
    if asked.report:
        return sweep.report()
    try:
        return sweep.main()
    except KeyboardInterrupt:
        print(
            "twofold: Interrupted. Done cells and complete checkpoints are kept: the same command "
            "goes on.",
            file=sys.stderr,
        )
        return 2


def _parser(name: str, overrides: tuple[str, ...]) -> Callable[..., Asked]:
    def training(
        data: Path,
        out: Path,
        seeds: int = 5,
        jobs: int = 1,
        processes: int = 1,
        rows: tuple[str, ...] = (),
        list: tyro.conf.FlagCreatePairsOff[bool] = False,
        report: tyro.conf.FlagCreatePairsOff[bool] = False,
        replace: tyro.conf.FlagCreatePairsOff[bool] = False,
        keep_checkpoints: tyro.conf.FlagCreatePairsOff[bool] = False,
    ) -> Asked:
        order = Order(
            table=name,
            data=data,
            out=out,
            seeds=seeds,
            jobs=jobs,
            processes=processes,
            rows=rows,
            overrides=overrides,
            replace=replace,
            keep_checkpoints=keep_checkpoints,
        )
        return Asked(order, list, report)

    def step(
        out: Path,
        seeds: int = 5,
        jobs: int = 1,
        rows: tuple[str, ...] = (),
        list: tyro.conf.FlagCreatePairsOff[bool] = False,
        report: tyro.conf.FlagCreatePairsOff[bool] = False,
        replace: tyro.conf.FlagCreatePairsOff[bool] = False,
    ) -> Asked:
        order = Order(
            table=name,
            out=out,
            seeds=seeds,
            jobs=jobs,
            rows=rows,
            overrides=overrides,
            replace=replace,
        )
        return Asked(order, list, report)

    kind = TABLES[name].kind
    parser = {"training": training, "step": step}[kind]
    parser.__doc__ = f"""{TABLES[name].sentence}

    {SECTIONS[kind]}
    {ARGUMENTS}"""
    return parser
