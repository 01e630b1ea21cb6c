"""``twofold doctor``: is this machine ready?"""

from collections.abc import Sequence

from trainer.commands.parsing import parse
from trainer.doctor import checks


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    parse(_parser, "doctor", arguments)
    return checks.main()


def _parser() -> None:
    """Is this machine ready? Versions, FBGEMM, devices, limits, and the line that repairs each.

    Exit code 2 if something would stop a run.
    """
