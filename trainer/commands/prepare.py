"""``twofold prepare SOURCE``: turns a log into an event store."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console

from data.prepare import prepare
from data.sources import SOURCES
from data.store import StoreInfo
from trainer.commands.parsing import NO_PREFIX, parse_one_of
from trainer.tables import store_table


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    builders = {name: _builder(source) for name, source in SOURCES.items()}
    build = parse_one_of(builders, "prepare", arguments)
    Console().print(store_table(dataclasses.asdict(build())))
    return 0


def _builder(source_type: type) -> Callable[..., Callable[[], StoreInfo]]:
    def builder(
        source: Annotated[source_type, NO_PREFIX],
        out: Path,
        seed: int = 0,
        partitions: int | None = None,
        force: bool = False,
    ) -> Callable[[], StoreInfo]:
        return lambda: prepare(source, out, seed=seed, partitions=partitions, overwrite=force)

    builder.__doc__ = f"""{source_type.__doc__}

    Args:
        source: The log.
        out: Folder of the store.
        seed: Of all random draws.
        partitions: Number of partitions; by default one for every 5 million events.
        force: Replace a store at --out once the new one is complete.
    """
    return builder
