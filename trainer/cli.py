"""The command line: picks a command, and turns what goes wrong into a message and an exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from data.errors import InputError
from trainer.commands.parsing import choose, wants_help
from trainer.rank_tags import rank_tags

HELP = """\
Twofold trains click-through-rate models over lifelong user histories.

usage: twofold COMMAND [options]        twofold COMMAND --help

  doctor             is this machine ready? versions, FBGEMM, devices, limits
  prepare            turn a log into an event store
  verify-store       is every byte of a store what was written?
  plan               what fits on which cluster, how fast and why, before one is rented
  train              train an experiment on a store
  status             how far a run or a sweep is
  verify-checkpoint  is a checkpoint the same run on more ranks or other shards?
  evaluate           score a trained run's checkpoint on a split
  analyze            measure what a run's search and attention follow, in pictures
  topk               rank the whole catalogue for each user: retrieval models and their metrics
  sweep              run a table of trainings, rows times seeds, and compare them
  launch             train on a Ray cluster, or here through Ray
  demo               prepare a real log, train DARE and TWIN on it, compare them

Several processes:  torchrun --nproc-per-node 2 -m trainer.main train ...
                    torchx run torchx_specs/components.py:train -j 1x2 -- EXPERIMENT ...
Exit codes: 0 done, 1 failure, 2 wrong usage, wrong input or Ctrl-C,
75 told to end by SIGTERM and saved: start it again with --resume.
"""
COMMANDS = (
    "doctor", "prepare", "verify-store", "plan", "train", "status", "verify-checkpoint", "evaluate",
    "analyze", "topk", "sweep", "launch", "demo",
)  # fmt: skip


def main() -> NoReturn:
    """Entry point of ``twofold`` and ``python -m trainer.main``; exits."""
    code = run(sys.argv[1:])
    # TorchRec's modules refer to each other in circles and hold the process group. If it outlived
    # them into the interpreter's shutdown, a thread of gloo's that lets go of a tensor just then
    # would abort the process.
    gc.collect()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit code."""
    with rank_tags():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    if not arguments or wants_help(arguments):
        print(HELP, end="")
        return 0
    try:
        name = choose("command", COMMANDS, arguments, "twofold COMMAND [options]")
        # imported only now: `twofold --help` does not wait for torch
        module = name.replace("-", "_")
        return importlib.import_module(f"trainer.commands.{module}").main(arguments[1:])
    except KeyboardInterrupt:
        _complain("Interrupted. What was not complete is removed.")
        return 2
    except InputError as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:
        # who read our output has left, as in `twofold ... | head`; nor may the exit flush to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception:
        traceback.print_exc()
        return 1


def _complain(message: str) -> None:
    """One message: before the process group is there all ranks know the same."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"twofold: {message}", file=sys.stderr)
