"""``twofold verify-checkpoint RUN``: is a checkpoint the same run on more ranks or other shards?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from data.errors import InputError
from sharding.plan import ShardingKind
from trainer.checkpoint import Link
from trainer.commands.parsing import parse
from trainer.evaluate import open_store_of
from trainer.planning.report import read_report
from trainer.run_folder import read_config, read_experiment
from trainer.verify import Case, Finding, differs, loss_difference, verify_checkpoint


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return parse(_command, "verify-checkpoint", arguments)


def _command(
    run: Annotated[Path, tyro.conf.Positional],
    data: Path,
    world: Annotated[str | None, tyro.conf.arg(metavar="N,N,...")] = None,
    kinds: tuple[ShardingKind, ...] = (),
    plan: Path | None = None,
    checkpoint: Link = "last",
    steps: int = 3,
    tolerance: float = 1e-4,
) -> int:
    """Loads a checkpoint at each world size and compares every row and optimizer state by id.

    Runs on CPUs, with as many processes as ranks. Exit code 1 where a number of a table or of an
    optimizer's state differs at all, the losses of the next steps differ by more than the
    tolerance, or the checkpoint cannot be loaded so.

    Example: twofold verify-checkpoint runs/mine --data stores/mine --world 1,2,4 --kinds row_wise

    Args:
        run: Run folder.
        data: The event store that the run was trained on.
        world: World sizes, e.g. 1,2,4, which is the default; with --plan those of the plan are.
        kinds: Sharding types that all tables are given, one after the other; none: as the run.
            Not with --plan, which names them.
        plan: A plan.json to load it under, at the world sizes that it is for.
        checkpoint: best: highest validation AUC; last: the newest.
        steps: Steps to train from there.
        tolerance: Of their losses, in parts of the first one's.
    """
    if steps < 0 or not 0 <= tolerance < 1:
        raise InputError(
            f"--steps must not be negative and --tolerance lie from 0 up and below 1; got {steps} "
            f"and {tolerance}."
        )
    if plan and kinds:
        raise InputError("--plan says how each table is sharded: give it or --kinds, not both.")
    config = read_config(run)
    experiment = read_experiment(config)
    open_store_of(run, config, data)
    worlds = _world_sizes(world) if world else _of_plan(plan) if plan else [1, 2, 4]
    if plan:
        cases = [Case(world_size=size, plan=plan) for size in worlds]
    else:
        cases = [Case(world_size=size, kind=kind) for kind in kinds or (None,) for size in worlds]
    findings = verify_checkpoint(run, experiment, data, checkpoint, cases, steps)
    first = next((finding for finding in findings if not finding.refused), Finding())
    wrong = [differs(finding, first, tolerance) for finding in findings]
    _print(f"{run}, checkpoint {checkpoint}", cases, findings, first, wrong)
    return int(any(wrong))


def _world_sizes(text: str) -> list[int]:
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > 64:
        raise InputError(f"--world takes world sizes from 1 to 64, such as 1,2,4; got {text!r}.")
    return sizes


def _of_plan(plan: Path) -> list[int]:
    return sorted({found["world_size"] for found in read_report(plan)["plans"]})


def _print(
    title: str, cases: list[Case], findings: list[Finding], first: Finding, wrong: list[bool]
) -> None:
    table = Table(title=title, title_justify="left", box=None)
    for name in ("ranks", "plan", "numbers", "tables", "optimizers", "next losses", ""):
        table.add_column(name, justify="left" if name in ("plan", "") else "right")
    for case, finding, bad in zip(cases, findings, wrong, strict=True):
        shown = ("-",) * 4
        if not finding.refused:
            differences = (finding.tables, finding.optimizers, loss_difference(finding, first))
            shown = (f"{finding.numbers:,}", *(f"{value:.2g}" for value in differences))
        verdict = "refused" if finding.refused else "differs" if bad else "same"
        table.add_row(str(case.world_size), str(case), *shown, verdict)
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(
        "Largest differences: of numbers, absolute; of losses, in parts of the first row."
    )
    for reason in dict.fromkeys(finding.refused for finding in findings if finding.refused):
        console.print(reason)
