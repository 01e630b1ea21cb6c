"""How a process ended, in words."""

import signal


def ending(code: int) -> str:
    """Of an exit code, or the negative number of the signal that ended the process.

    >>> ending(-9)
    'was ended by SIGKILL (often: out of memory)'
    """
    if code >= 0:
        return f"failed with exit code {code}"
    memory = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {signal_name(-code)}{memory}"


def signal_name(number: int) -> str:
    """SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
