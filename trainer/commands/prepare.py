"""``twofold prepare SOURCE``: turns a log into an event store."""

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from data.prepare import Engine, prepare
from data.source import SPLITS
from data.sources import SOURCES
from data.store import StoreInfo
from trainer import formats
from trainer.commands.parsing import choose, first_paragraph, parse, print_choices, wants_help
from trainer.tables import store_table

USAGE = "twofold prepare SOURCE --out STORE [options]"
EXAMPLES = {
    "completejourney": "",
    "taobao": "--path UserBehavior.csv",
    "tmall": "--path user_log_format1.csv",
    "table": "--path log.csv --user customer --item product --time date --label bought",
    "synthetic": "--users 10_000 --events-per-user 500",
    "teacher": "--kappa 0.5",
    "criteo": "--path train.txt --preparation x4",
    "avazu": "--path train.csv.gz",
    "frappe": "--path frappe.train.libfm frappe.validation.libfm frappe.test.libfm",
}
"""Options beside --out, for the help of each source."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    if wants_help(arguments):
        sentences = {name: _sentence(source) for name, source in SOURCES.items()}
        more = "Options of a source, with an example: twofold prepare table --help"
        print_choices("Turns a log into an event store.", USAGE, sentences, more)
        return 0
    name = choose("source", SOURCES, arguments, USAGE)
    build = parse(_builder(name, SOURCES[name]), f"prepare {name}", arguments[1:])
    with _quiet_pyarrow():
        info = build()
    Console().print(_rows_table(info) if info.flat else store_table(dataclasses.asdict(info)))
    if warning := _empty_splits(name, info):
        print(f"twofold: warning: {warning}", file=sys.stderr)
    return 0


def _rows_table(info: StoreInfo) -> Table:
    """What a table without users became: rows by split, and the columns of ids and of numbers."""
    title = f"Event store from {info.source}: rows without histories"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "total", *SPLITS):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, by_split in (("rows", info.requests), ("positives", info.positives)):
        counts = [by_split[split] for split in SPLITS]
        table.add_row(name, *map(formats.count, (sum(counts), *counts)))
    table.add_section()
    table.add_row("columns of ids", formats.count(len(info.context)))
    table.add_row("ids", formats.count(sum(field.num_embeddings for field in info.context)))
    table.add_row("columns of numbers", formats.count(len(info.numbers)))
    table.add_section()
    table.add_row("partitions", formats.count(len(info.partitions)))
    table.add_row("size", formats.size(info.bytes))
    table.add_row("fingerprint", info.fingerprint[:12])
    return table


def _empty_splits(source: str, info: StoreInfo) -> str | None:
    """What a store without requests to train, validate or test on is told with."""
    empty = [split for split in SPLITS if not info.requests[split]]
    if not empty:
        return None
    return (
        f"this store has no {' and no '.join(empty)} requests, and train needs all three splits. "
        f"{_EMPTY_BECAUSE.get(source, _TOO_SHORT)}"
    )


_TOO_SHORT = (
    "The log is too short for the split: users need more events each. Prepare a larger part of it."
)
_EMPTY_BECAUSE = {
    "table": "The log is too short for the split: either no event lies in that part of its time "
    "(--val-fraction, --test-fraction, --val-start, --test-start), or no user has enough earlier "
    "events there (--min-history). Change these, or prepare a longer log.",
    "synthetic": "Each user's last pages are its requests, but the first page is none: raise "
    "--events-per-user to several times --candidates, and --train-requests above 0.",
}


@contextlib.contextmanager
def _quiet_pyarrow() -> Iterator[None]:
    """Of a bad line that is not UTF-8 it prints a traceback beside the error that it raises."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def _sentence(source_type: type) -> str:
    return first_paragraph(inspect.getdoc(inspect.getmodule(source_type)))


def _builder(name: str, source_type: type) -> Callable[..., Callable[[], StoreInfo]]:
    def builder(
        source: Annotated[source_type, tyro.conf.arg(name="")],
        out: Path,
        seed: int = 0,
        partitions: int | None = None,
        force: tyro.conf.FlagCreatePairsOff[bool] = False,
        engine: Engine = "local",
        address: str | None = None,
    ) -> Callable[[], StoreInfo]:
        return lambda: prepare(
            source,
            out,
            seed=seed,
            partitions=partitions,
            overwrite=force,
            engine=engine,
            address=address,
        )

    builder.__doc__ = f"""{_sentence(source_type)}

    {first_paragraph(source_type.__doc__)}

    Example: twofold prepare {name} --out stores/{name} {EXAMPLES[name]}

    Args:
        source: The log.
        out: Folder of the store.
        seed: Seed of all random draws.
        partitions: Number of partitions; by default one for every 2 million events, or million
            rows of a table without users.
        force: Replace a store at --out once the new one is complete.
        engine: local: this process. ray: all nodes of a Ray cluster, for histories that are too
            long for one machine; same bytes. Every node must see the log and the folder of --out
            under the same absolute path, and have this project's libraries.
        address: Of the Ray cluster: auto (this machine is one of its nodes), HOST:PORT or
            ray://HOST:PORT. By default one is started on this machine for as long as it is needed,
            closed to others. One that you start has open ports unless you close them
            (docs/clusters.md): who reaches them can run code.
    """
    return builder
