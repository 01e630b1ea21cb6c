"""The steps that can be measured, by name."""

# no `from __future__ import annotations`: tyro reads a type that is known only at run time
from collections.abc import Sequence
from typing import Annotated

import tyro

from trainer.commands.parsing import parse
from trainer.steps.network_step import NetworkStep
from trainer.steps.step import Step
from trainer.steps.table_step import TableStep

STEPS: dict[str, type[Step]] = {"table": TableStep, "network": NetworkStep}
"""Name -> its settings."""


def step_of(name: str, flags: Sequence[str]) -> Step:
    """The step that the flags describe.

    Raises:
        InputError: a value that the step refuses.
        SystemExit: unknown flags, told to the user; 2. Help; 0.
    """
    kind = STEPS[name]
    default = kind()

    def parser(step: Annotated[kind, tyro.conf.arg(name="")] = default) -> Step:
        return step

    return parse(parser, "sweep TABLE --out DIR --", flags)
