"""Command lines to values: a first word that picks, then flags from a function's signature."""

import contextlib
import difflib
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from data.errors import InputError


def choose(kind: str, names: Collection[str], arguments: Sequence[str], usage: str) -> str:
    """The first argument, which must be one of ``names``.

    Raises:
        InputError: it is missing or another; with the nearest name.
    """
    there_are = f"There are: {', '.join(names)}. Help: {usage.split(kind.upper())[0]}--help"
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"The {kind} comes first: {usage}. {there_are}")
    word = arguments[0]
    if word in names:
        return word
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise InputError(f"There is no {kind} {word!r}. {hint}{there_are}")


def wants_help(arguments: Sequence[str]) -> bool:
    """Is the first argument a call for help?"""
    return bool(arguments) and arguments[0] in ("-h", "--help", "help")


def print_choices(does: str, usage: str, sentences: Mapping[str, str], more: str) -> None:
    """Help of a command whose first word is a choice."""
    width = max(map(len, sentences))
    print(f"{does}\n\nusage: {usage}\n")
    for name, sentence in sentences.items():
        print(f"  {name:<{width}}  {sentence}")
    print(f"\n{more}")


def parse(command: Callable[..., Any], name: str, arguments: Sequence[str]) -> Any:
    """Calls ``command`` with the values of its flags.

    Raises:
        InputError: a value that a config refuses.
        SystemExit: unknown or missing flags, told to the user; 2. Help; 0.
    """
    # tyro takes a second to import
    import tyro

    with _on_first_rank_only():
        try:
            return tyro.cli(
                command,
                prog=f"twofold {name}",
                args=list(arguments),
                config=(tyro.conf.DisallowNone,),
            )
        except ValueError as error:
            raise InputError(str(error)) from error


def first_paragraph(text: str | None) -> str:
    """Of a docstring, without its markup."""
    return " ".join((text or "").strip().split("\n\n")[0].replace("``", "").split())


@contextlib.contextmanager
def _on_first_rank_only() -> Iterator[None]:
    """All ranks get the same command line: one of them complains of it."""
    if int(os.environ.get("RANK", 0)) == 0:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
