"""``python -m trainer.steps table|network DIR [flags]``: measures one step and writes it to DIR.

``twofold sweep ids`` and ``twofold sweep fields`` run many of them.
"""

import sys
from pathlib import Path

import torch.distributed as dist

from data.errors import InputError
from trainer.steps.kinds import step_of
from trainer.steps.measure import write_measurement


def main() -> int:
    """Returns the exit code."""
    name, folder, *flags = sys.argv[1:]
    try:
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
