"""Checkpoints of a run: written whole or not at all, checked when read, running nothing that is in
them. See :mod:`trainer.checkpoint.checkpoints` for the layout.
"""

from trainer.checkpoint.checkpoints import Checkpoints, Link
from trainer.checkpoint.position import Position
from trainer.checkpoint.safe_reading import SafePlanner, SafeReader

__all__ = ["Checkpoints", "Link", "Position", "SafePlanner", "SafeReader"]
