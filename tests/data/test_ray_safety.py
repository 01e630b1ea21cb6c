"""A cluster that does not answer is found out in seconds, and told as what it is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from data import ray_safety
from data.errors import InputError
from data.ray_safety import find_cluster

SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
"""What a gRPC server says first."""


@pytest.fixture
def port() -> Iterator[int]:
    """Where a process listens that never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A copy, for what is set in it."""
    copy = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", copy)
    return copy


def answering(words: bytes) -> int:
    """The port of a server of one connection, to which it says this."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(words)
            connection.recv(100)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


def test_a_process_that_hangs_is_no_cluster(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_safety, "ANSWER", 0.1)
    told = rf"No Ray cluster answers at --address 127.0.0.1:{port} \(timed out\)"
    with pytest.raises(InputError, match=told):
        find_cluster(f"127.0.0.1:{port}")


def test_another_server_is_no_cluster() -> None:
    with pytest.raises(InputError, match=r"\(what listens there is no Ray\).*ray start --head"):
        find_cluster(f"127.0.0.1:{answering(b'HTTP/1.1 400 Bad Request')}")


def test_what_auto_stands_for_is_looked_for_and_told(environment: dict[str, str]) -> None:
    environment["RAY_ADDRESS"] = "127.0.0.1:1"  # of a cluster that is gone
    with pytest.raises(InputError, match=r"auto, which is 127.0.0.1:1 here \(.*refused\)"):
        find_cluster("auto")


def test_auto_is_no_dashboard(environment: dict[str, str]) -> None:
    environment["RAY_ADDRESS"] = "http://127.0.0.1:8265"
    with pytest.raises(InputError, match=r"RAY_ADDRESS is http://.*, where jobs are submitted"):
        find_cluster("auto")


def test_auto_where_nothing_runs_is_told(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_safety, "_ASK", "raise ConnectionError")  # others' clusters may run
    with pytest.raises(InputError, match=r"auto \(none is known .* ConnectionError"):
        find_cluster("auto")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_on_the_loopback_address_is_joined_there(
    scheme: str, environment: dict[str, str]
) -> None:
    address = f"{scheme}localhost:{answering(SETTINGS)}"
    assert find_cluster(address) == address
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
