"""Flags from the signatures of functions."""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from data.errors import InputError

NO_PREFIX = tyro.conf.arg(name="")
"""For a dataclass parameter: its fields are flags of their own, ``--history-length`` and not
``--experiment.history-length``."""


def parse(command: Callable[..., Any], name: str, arguments: Sequence[str]) -> Any:
    """Calls ``command`` with the values of its flags.

    Raises:
        InputError: a value that a config refuses.
        SystemExit: unknown or missing flags, told to the user; 2. Help; 0.
    """
    try:
        return tyro.cli(command, prog=f"twofold {name}", args=list(arguments))
    except ValueError as error:
        raise InputError(str(error)) from error


def parse_one_of(
    commands: dict[str, Callable[..., Any]], name: str, arguments: Sequence[str]
) -> Any:
    """The same, with a subcommand in front that picks the function."""
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog=f"twofold {name}", args=list(arguments)
        )
    except ValueError as error:
        raise InputError(str(error)) from error
