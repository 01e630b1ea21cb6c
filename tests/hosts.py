"""Two hosts on one machine: network namespaces with addresses of their own and a wire between them.

Needs Linux, the ``ip`` command and the right to make namespaces (root). To look around by hand::

    python -m tests.hosts      makes them, says how to use them, and waits for Enter
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

CONNECTED, LISTENING = "01", "0A"
"""States of a socket in /proc/net."""


@dataclass(frozen=True)
class Host:
    """A namespace."""

    name: str
    address: str
    interface: str

    def command(self, *words: object) -> list[str]:
        """Runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def connect(self, on: bool) -> None:
        """Plugs the wire in, or pulls it: what is sent then is lost, and nobody is told."""
        _ip("-n", self.name, "link", "set", self.interface, "up" if on else "down")

    def limit_ports(self, ports: range) -> None:
        """Ports that the kernel gives to those who do not ask for one."""
        limits = f"net.ipv4.ip_local_port_range={ports[0]} {ports[-1]}"
        subprocess.run(self.command("sysctl", "-qw", limits), check=True, capture_output=True)

    def ports(self) -> set[int]:
        """At which processes of this host listen or are connected."""
        tables = [f"/proc/net/{protocol}" for protocol in ("tcp", "tcp6")]
        done = subprocess.run(self.command("cat", *tables), check=True, capture_output=True)
        sockets = [line.split() for line in done.stdout.decode().splitlines() if ":" in line]
        used = {CONNECTED, LISTENING}
        return {int(words[1].rpartition(":")[2], 16) for words in sockets if words[3] in used}


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """10.77.0.1 and 10.77.0.2; no other host can be reached from them, nor they from others."""
    mark = f"h{os.getpid()}"
    hosts = tuple(Host(f"{mark}-{n}", f"10.77.0.{n}", f"{mark}-{n}") for n in (1, 2))
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        one, two = hosts
        wire = ["type", "veth", "peer", "name", two.interface, "netns", two.name]
        _ip("link", "add", one.interface, "netns", one.name, *wire)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", "lo", "up")
            host.connect(True)
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


def why_not() -> str | None:
    """What this machine lacks for two hosts."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is not here"
    try:
        with two_hosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    with two_hosts() as pair:
        for each in pair:
            print(f"{each.address}: {' '.join(each.command('bash'))}")
        input("Enter removes them. ")
