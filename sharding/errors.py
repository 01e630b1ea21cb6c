"""What can be wrong with what was asked of the tables."""


class PlanError(ValueError):
    """What was asked of the tables cannot be had on this machine: the message says why."""
