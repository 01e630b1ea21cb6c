"""``twofold plan EXPERIMENT``: what fits where, how fast, and why, before a cluster is rented."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console

from data.errors import InputError
from sharding.catalogue import load_nodes, parse_cluster
from sharding.errors import PlanError
from trainer.commands.parsing import choose, first_paragraph, parse, print_choices, wants_help
from trainer.experiment import Experiment
from trainer.experiments import EXPERIMENTS

USAGE = "twofold plan EXPERIMENT --data STORE --cluster 2x8xH100-80 [options]"
MORE = """\
Options:              twofold plan dare --help
Compare two plans:    twofold plan --diff A B
Measure this machine: twofold plan --calibrate --out mine.toml [--name mine]
Use a plan:           twofold train dare --plan OUT/plan.json ..."""

FLAGS = """Args:
    data: Event store made by twofold prepare.
    tables: Description of a log instead of one, in TOML (docs/planning.md).
    cluster: NODESxDEVICESxNODE, as 2x8xH100-80; may be given several times.
    nodes: TOML file with nodes of your own, as --calibrate writes.
    batch: Requests of a global batch; 0: the experiment's.
    price: Of a whole node for an hour, however few of its devices are used, by its name:
        H100-80 98.3 A100-40 32.8.
    host_memory: Large tables may lie in the host's memory, cached on the device.
    out: Folder for plan.json and report.html.
    experiment: Overrides.
"""


class Order(NamedTuple):
    """What was asked for."""

    experiment: Experiment
    data: Path | None
    tables: Path | None
    cluster: tuple[str, ...]
    nodes: Path | None
    batch: int
    price: dict[str, float]
    host_memory: bool
    out: Path | None


def main(arguments: Sequence[str]) -> int:
    """Runs the command: 0; 2 if no cluster of the plan fits, which is told and written as well."""
    if wants_help(arguments):
        sentences = {name: first_paragraph(make.__doc__) for name, make in EXPERIMENTS.items()}
        print_choices("Plans an experiment for clusters, without one.", USAGE, sentences, MORE)
        return 0
    try:
        if arguments and arguments[0] == "--diff":
            return _diff(arguments[1:])
        if arguments and arguments[0] == "--calibrate":
            return _calibrate(arguments[1:])
        name = choose("experiment", EXPERIMENTS, arguments, USAGE)
        order: Order = parse(_parser(name, EXPERIMENTS[name]), f"plan {name}", arguments[1:])
        return _plan(name, order)
    except PlanError as error:
        raise InputError(str(error)) from error


def _plan(name: str, order: Order) -> int:
    from data.store import EventStore
    from trainer.planning.log import Log
    from trainer.planning.report import make_report, write_json
    from trainer.planning.tables import report_tables, short
    from trainer.processes import quiet_dependencies
    from trainer.report.plan_page import write_plan_page

    quiet_dependencies()
    if (order.data is None) == (order.tables is None):
        raise InputError("Give --data STORE, or --tables FILE.toml that describes a log: one.")
    nodes = load_nodes(order.nodes)
    if not order.cluster:
        raise InputError(
            f"Give at least one --cluster, as --cluster 2x8xH100-80. Nodes: {', '.join(nodes)}."
        )
    for node, price in order.price.items():
        if not 0 <= price < float("inf"):
            raise InputError(f"--price of {node} must be a number from 0 up, got {price}.")
    clusters = [parse_cluster(text, nodes) for text in order.cluster]
    _check_folder(order.out)
    log = Log.of_store(EventStore.open(order.data)) if order.data else Log.of_file(order.tables)
    report = make_report(
        name,
        _with_batch(order),
        log,
        list(dict.fromkeys(clusters)),
        prices=order.price,
        host=order.host_memory,
    )
    console = Console()
    for table in report_tables(report):
        console.print(table)
    if order.out:
        try:
            write_json(order.out / "plan.json", report)
            write_plan_page(order.out / "report.html", report)
        except OSError as error:
            raise InputError(f"--out {order.out} cannot be written: {error}.") from error
        console.print(f"Plan: {order.out / 'plan.json'}  Report: {order.out / 'report.html'}")
    if any(plan["fits"] for plan in report["plans"]):
        return 0
    missing = ", ".join(f"{plan['cluster']} ({short(plan)})" for plan in report["plans"])
    console.print(f"Fits on no cluster that was given: {missing}. Exit code 2.", soft_wrap=True)
    return 2


def _check_folder(out: Path | None) -> None:
    """Before the planner runs for nothing."""
    there = next((path for path in (out, *out.parents) if path.exists()), None) if out else None
    if there is not None and not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(
            f"--out {out}: {there} is no folder that can be written to. Name a folder; it is made "
            "where it is missing."
        )


def _with_batch(order: Order) -> Experiment:
    if not order.batch:
        return order.experiment
    try:
        return order.experiment.changed(requests_per_batch=order.batch)
    except ValueError as error:
        raise InputError(f"--batch: {error}") from error


def _diff(arguments: Sequence[str]) -> int:
    from trainer.planning.compare import diff_tables
    from trainer.planning.report import read_report

    if len(arguments) != 2:
        raise InputError(
            f"twofold plan --diff wants two plans, as --diff a/plan.json b/plan.json; got "
            f"{len(arguments)}."
        )
    console = Console()
    for table in diff_tables(*(read_report(Path(path)) for path in arguments)):
        console.print(table)
    return 0


def _calibrate(arguments: Sequence[str]) -> int:
    from trainer.planning.calibrate import calibrate

    parse(calibrate, "plan --calibrate", arguments)
    return 0


def _parser(name: str, make: Callable[[], Experiment]) -> Callable[..., Order]:
    default = make()

    def parser(
        data: Path | None = None,
        tables: Path | None = None,
        cluster: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
        nodes: Path | None = None,
        batch: int = 0,
        price: dict[str, float] = {},  # noqa: B006 -- never changed
        host_memory: tyro.conf.FlagCreatePairsOff[bool] = False,
        out: Path | None = None,
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
    ) -> Order:
        return Order(
            experiment, data, tables, cluster, nodes, batch, price, host_memory, out
        )  # fmt: skip

    about = inspect.cleandoc(make.__doc__ or "").replace("``", "")
    example = (
        f"Example: twofold plan {name} --data stores/mine --cluster 2x8xH100-80 --cluster "
        f"4x8xA100-40 --price H100-80 98 A100-40 33 --out plans/{name}"
    )
    parser.__doc__ = f"Plans for clusters, without one. {about}\n\n{example}\n\n{FLAGS}"
    return parser
