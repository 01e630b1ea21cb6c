"""``twofold demo``: the main job."""

from collections.abc import Sequence

from trainer import demo
from trainer.commands.parsing import parse


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    return parse(demo.main, "demo", arguments)
