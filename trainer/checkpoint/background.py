"""A function beside the rest of a process that does not wait for it at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_thread(function: Callable[..., None], *args: Any) -> Future[None]:
    """Calls it in a thread of its own. With an executor's thread, which Python waits for, a process
    could not give up a write that waits for a lost rank.
    """
    future: Future[None] = Future()

    def call() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="checkpoint", daemon=True).start()
    return future
