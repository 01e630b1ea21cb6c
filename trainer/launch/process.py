"""``twofold`` as a process that does not outlive its launcher.

A launcher that is killed without warning, as Ray kills one of a cancelled job, cannot end the
processes that it has started: they would train on, with nobody to stop them.
"""

import os
import signal
import threading
import time
from pathlib import Path

POLL = 0.5
"""Seconds between two looks for the launcher."""


def end_with_launcher() -> None:
    """From now on this process is killed as soon as its parent is gone, and at once if it is.

    To be called before what takes long to import: who has lost its parent before cannot tell, but
    where the first process of the machine has adopted it.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher and not _adopted(launcher):
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _adopted(parent: int) -> bool:
    """Is it the first process, and no Python such as a launcher that is alone in a container?"""
    if parent != 1:
        return False
    try:
        # not /proc/1/exe, which not even root may read everywhere
        return b"python" not in Path("/proc/1/cmdline").read_bytes().partition(b"\0")[0]
    except OSError:  # another system
        return False


if __name__ == "__main__":
    end_with_launcher()
    from trainer.cli import main

    main()
