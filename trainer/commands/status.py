"""``twofold status RUN``: how far a run or a sweep is, from its files alone."""

from __future__ import annotations

import contextlib
import json as text_of
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.live import Live

from data.errors import InputError
from trainer.commands.parsing import parse
from trainer.status import RunStatus, read_status, read_sweep
from trainer.status_tables import Found, status_table

SECONDS_BETWEEN_LOOKS = 2.0


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return parse(_command, "status", arguments)


def _command(
    run: Annotated[Path, tyro.conf.Positional],
    watch: tyro.conf.FlagCreatePairsOff[bool] = False,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> int:
    """Says how far a run or a sweep is: step, loss, speed, time left, checkpoint, validation.

    Reads files only: the job neither notices nor waits.

    Example: twofold status runs/dare --watch

    Args:
        run: Run folder of twofold train, or folder of twofold sweep.
        watch: Look again every two seconds, until nothing runs any more.
        json: Print a line of JSON: an object for a run, a list for a sweep.
    """
    # Ctrl-C only stops looking
    with contextlib.suppress(KeyboardInterrupt), _shown(watch=watch, as_json=json) as show:
        while True:
            found = _look(run)
            show(found)
            if not (watch and any(s.state == "running" for s in _list(found))):
                return 0
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return 0


def _look(folder: Path) -> Found:
    if not (folder / "sweep.json").exists():
        return read_status(folder)
    if cells := read_sweep(folder):
        return cells
    raise InputError(f"No training of the sweep {folder} has begun, or it is of other jobs.")


def _list(found: Found) -> list[RunStatus]:
    return found if isinstance(found, list) else [found]


@contextlib.contextmanager
def _shown(*, watch: bool, as_json: bool) -> Iterator[Callable[[Found], None]]:
    """Yields what shows a look: as a line, as a table, or in the place of the look before."""
    console = Console()
    if as_json:
        yield lambda found: print(_as_json(found), flush=True)
    elif watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as picture:
            yield lambda found: picture.update(status_table(found), refresh=True)
    else:
        yield lambda found: console.print(status_table(found), highlight=False)


def _as_json(found: Found) -> str:
    content = [s.to_json() for s in found] if isinstance(found, list) else found.to_json()
    return text_of.dumps(content)
