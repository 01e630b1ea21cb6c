"""Ray clusters from outside, before Ray is imported, which reads the environment then.

Who reaches a cluster's ports can run code: others are kept out of one that is started here. And one
that is said to run is looked for first, since Ray itself would try for minutes.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys

from data.errors import InputError

ANSWER = 10.0
"""Seconds that a cluster has for its first word."""


def shut_out_others() -> None:
    """Makes a cluster that this process is going to start its own, whatever else is on the machine.

    Ray listens on all interfaces, unless a switch, whose name speaks of other systems, is off: then
    on the loopback address alone (tests look). Its token shuts out other users of the machine. What
    the user has set stays, and a process that is connected to a cluster already starts none.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    listen_on_loopback()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())


def listen_on_loopback() -> None:
    """Ray's processes of a cluster of this machine alone, and its clients there."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def find_cluster(address: str) -> str:
    """Looks whether a cluster answers, and lets Ray reach one on the loopback address.

    Args:
        address: auto (a cluster that this machine is in), HOST:PORT or ray://HOST:PORT.

    Returns:
        Where it answers: the address, or what auto stands for.

    Raises:
        InputError: nobody answers within seconds, or no Ray.
    """
    found = address
    try:
        if address == "auto":
            found = _of_this_machine()
        host, _, port = found.removeprefix("ray://").rpartition(":")
        answered = _greet(host, int(port))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        where = address if found == address else f"{address}, which is {found} here"
        raise InputError(
            f"No Ray cluster answers at --address {where} ({error}). Give HOST:PORT as `ray start "
            "--head` printed it, auto on a machine of the cluster, or leave it out to start one on "
            "this machine alone."
        ) from error
    if answered.startswith("127."):
        listen_on_loopback()  # else Ray goes to this machine's other address, maybe in vain
    return found


def _of_this_machine() -> str:
    """HOST:PORT, by Ray's own rules for auto: RAY_ADDRESS, what runs here, what was noted of it.

    Asked in a process of its own: this one must not import Ray yet.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named.startswith("ray://"):
        return named
    if "://" in named:
        raise ValueError(f"RAY_ADDRESS is {named}, where jobs are submitted: unset it")
    asked = subprocess.run(
        [sys.executable, "-P", "-c", _ASK],  # -P: no module of the folder that we are in
        env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},  # 127.0.0.1 stays what it is
        capture_output=True,
        text=True,
        timeout=6 * ANSWER,
    )
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or [""])[-1]
        raise ConnectionError(f"none is known on this machine or by RAY_ADDRESS: {reason}")
    return asked.stdout.split()[-1]


_ASK = "from ray._private import services; print(services.canonicalize_bootstrap_address('auto'))"


def _greet(host: str, port: int) -> str:
    """The number of the address that answers.

    OSError where nobody speaks Ray's protocol (gRPC, over HTTP/2): a connection alone is taken by
    the kernel for a process that hangs, too.
    """
    with socket.create_connection((host, port), timeout=ANSWER) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            connection.sendall(_PREFACE + _NO_SETTINGS)
            header = connection.recv(9)
            if header[3:4] != b"\x04":  # a server's first frame is its settings
                raise ConnectionError("what listens there is no Ray")
        return connection.getpeername()[0]


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""Of RFC 9113, section 3.4, as is an empty SETTINGS frame after it."""
_NO_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def no_entry(address: str | None, error: Exception) -> InputError:
    """For a cluster that answers and does not take us, or one that cannot be started here."""
    if address is None:
        return InputError(f"Ray cannot be started on this machine: {error}")
    return InputError(
        f"The Ray cluster at {address} did not let this process in ({error}). RAY_AUTH_MODE and "
        "RAY_AUTH_TOKEN must be those that it was started with, and so must the versions of Ray "
        "and Python."
    )
