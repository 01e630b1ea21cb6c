"""``twofold doctor``: is this machine ready?"""

from collections.abc import Sequence

from trainer import doctor
from trainer.commands.parsing import parse


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return parse(doctor.main, "doctor", arguments)
