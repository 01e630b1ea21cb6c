"""The command line: picks a command, and turns what goes wrong into a message and an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

HELP = """\
Twofold trains click-through-rate models over lifelong user histories.

usage: twofold COMMAND [options]        twofold COMMAND --help

  doctor     is this machine ready? versions, FBGEMM, devices, limits
  prepare    turn a log into an event store
  train      train an experiment on a store
  evaluate   score a trained run's checkpoint on a split
  demo       prepare a real log, train DARE and TWIN on it, compare them

Several processes:  torchrun --nproc-per-node 2 -m trainer.main train ...
                    torchx run -- EXPERIMENT --data STORE --out RUN
Exit codes: 0 done, 2 wrong usage or input, 1 failure.
"""
COMMANDS = ("doctor", "prepare", "train", "evaluate", "demo")


def main() -> NoReturn:
    """Entry point of ``twofold`` and ``python -m trainer.main``; exits."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit code."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        _complain(f"There is no command {name!r}.{hint} Commands: {', '.join(COMMANDS)}.")
        return 2
    try:
        # imported only now: `twofold --help` does not wait for torch
        return importlib.import_module(f"trainer.commands.{name}").main(rest)
    except KeyboardInterrupt:
        _complain("Interrupted. Complete checkpoints are kept: train --resume goes on from them.")
        return 2
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        if not _is_users(error):
            traceback.print_exc()
            return 1
        _complain(str(error))
        return 2


def _is_users(error: Exception) -> bool:
    from data.errors import InputError

    # no plan was chosen where planning was never imported
    planning = sys.modules.get("sharding.plan")
    return isinstance(error, InputError) or (
        planning is not None and isinstance(error, planning.PlanError)
    )


def _complain(message: str) -> None:
    """One message: ranks beside the first would only repeat it."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"twofold: {message}", file=sys.stderr)
