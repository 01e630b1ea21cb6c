"""How the process of a rank ended, in words."""

import signal


def ending(code: int) -> str:
    """Of an exit code, or the negative number of the signal that ended the process.

    >>> ending(-9)
    'was ended by SIGKILL (often: out of memory)'
    """
    if code >= 0:
        return f"failed with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-code}"
    memory = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{memory}"
