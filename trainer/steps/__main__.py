"""``python -m trainer.steps table|network DIR [flags]``: measures one step, writes it to DIR.

``twofold sweep ids`` and ``twofold sweep fields`` run many of them.
"""

import sys
from pathlib import Path

import torch.distributed as dist

from data.errors import InputError
from trainer.commands.parsing import choose, print_choices, wants_help
from trainer.steps.kinds import STEPS, step_of
from trainer.steps.measure import write_measurement

USAGE = "python -m trainer.steps STEP DIR [flags]"


def main() -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:]
    if wants_help(arguments):
        sentences = {name: (kind.__doc__ or "").splitlines()[0] for name, kind in STEPS.items()}
        more = "Flags of a step: python -m trainer.steps STEP DIR --help"
        print_choices("Measures one step.", USAGE, sentences, more)
        return 0
    try:
        name = choose("STEP", STEPS, arguments, USAGE)
        if len(arguments) < 2:
            raise InputError(f"Where to write what is measured? {USAGE}")
        folder, flags = arguments[1], arguments[2:]
        step = step_of(name, flags)
    except InputError as error:
        print(f"twofold: {error}", file=sys.stderr)
        return 2
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        write_measurement(name, step, Path(folder))
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
