"""Feature-interaction networks under one interface, and the encoder of a history as two fields.

``make_crossing(config, fields, width)(fields, first_order)`` gives log odds.
"""

from modules.crossing.config import CrossingConfig
from modules.crossing.history import HistoryConfig, HistoryEncoder
from modules.crossing.network import CrossingNetwork, make_crossing
from modules.crossing.presets import PRESETS

__all__ = [
    "PRESETS",
    "CrossingConfig",
    "CrossingNetwork",
    "HistoryConfig",
    "HistoryEncoder",
    "make_crossing",
]
