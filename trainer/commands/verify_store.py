"""``twofold verify-store STORE``: reads every byte of an event store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from data.store import StoreInfo
from data.verify import refuse_damaged
from trainer import formats
from trainer.commands.parsing import parse


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return parse(_command, "verify-store", arguments)


def _command(store: Annotated[Path, tyro.conf.Positional]) -> int:
    """Compares every file of an event store with its SHA-256 of when it was prepared.

    Training compares sizes alone, since reading all of a large store takes minutes. Exit code 2 and
    the names of the files where a byte differs.

    Example: twofold verify-store stores/completejourney

    Args:
        store: Event store made by twofold prepare.
    """
    refuse_damaged(store)
    print(f"{store} is whole: {formats.size(StoreInfo.read(store).bytes)} read.")
    return 0
