"""``twofold prepare SOURCE``: turns a log into an event store."""

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from data.prepare import prepare
from data.source import SPLITS
from data.sources import SOURCES
from data.store import StoreInfo
from trainer.commands.parsing import choose, first_paragraph, parse, print_choices, wants_help
from trainer.tables import store_table

USAGE = "twofold prepare SOURCE --out STORE [options]"
EXAMPLES = {
    "completejourney": "",
    "taobao": "--path UserBehavior.csv",
    "tmall": "--path user_log_format1.csv",
    "table": "--path log.csv --user customer --item product --time date --label bought",
    "synthetic": "--users 10_000 --events-per-user 500",
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
    Console().print(store_table(dataclasses.asdict(info)))
    if warning := _empty_splits(name, info):
        print(f"twofold: warning: {warning}", file=sys.stderr)
    return 0


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
    ) -> Callable[[], StoreInfo]:
        return lambda: prepare(source, out, seed=seed, partitions=partitions, overwrite=force)

    builder.__doc__ = f"""{_sentence(source_type)}

    {first_paragraph(source_type.__doc__)}

    Example: twofold prepare {name} --out stores/{name} {EXAMPLES[name]}

    Args:
        source: The log.
        out: Folder of the store.
        seed: Seed of all random draws.
        partitions: Number of partitions; by default one for every 2 million events.
        force: Replace a store at --out once the new one is complete.
    """
    return builder
