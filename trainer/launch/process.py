"""``twofold`` as a process that does not outlive its launcher.

A launcher that is killed without warning, as Ray kills one of a cancelled job, cannot end the
processes that it has started: they would train on, with nobody to stop them.
"""

import os
import signal
import threading
import time

from trainer.cli import main

POLL = 0.5
"""Seconds between two looks for the launcher."""


def end_with_launcher() -> None:
    """From now on this process is killed as soon as its parent is gone."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_launcher()
    main()
