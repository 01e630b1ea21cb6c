"""Keeps others out of a Ray cluster that is started here: who reaches its ports can run code."""

from __future__ import annotations

import os
import secrets
import sys


def shut_out_others() -> None:
    """Makes a cluster that this process is going to start its own, whatever else is on the machine.

    Call it before Ray is imported, which reads the environment then. Ray listens on all interfaces,
    unless a switch, whose name speaks of other systems, is off: then on the loopback address alone
    (tests look). Its token shuts out other users of the machine. What the user has set stays, and
    a process that is connected to a cluster already starts none.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    listen_on_loopback()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())


def listen_on_loopback() -> None:
    """Ray's processes of a cluster of this machine alone, and its clients there."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
