"""Hardware that a plan can be made for: devices, their nodes, and clusters of these."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sharding.errors import PlanError

Device = Literal["cuda", "cpu"]
BUILT_IN = Path(__file__).with_name("nodes.toml")
"""Entries with the data sheets that they are from."""
GB = 1e9
"""As data sheets count."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A kind of device and the node around it. Speeds are of one device and one direction."""

    name: str
    device: Device
    devices: int
    """At most so many in one node; each is a rank."""
    memory_gb: float
    """GB (10^9 bytes) of a device; of a CPU, of a rank."""
    memory_gbs: float
    """GB/s of its memory."""
    host_memory_gb: float
    """GB of the whole node's host, shared by its devices."""
    host_gbs: float
    """GB/s between a device and the host's memory."""
    intra_gbs: float
    """GB/s to the other devices of the node."""
    inter_gbs: float
    """GB/s to other nodes."""
    tflops: float
    """10^12 float32 operations a second in matrix products."""
    gather: float
    """Share of ``memory_gbs`` that looking up random rows reaches."""
    update: float
    """Share of ``memory_gbs`` that a fused update of rows reaches."""
    search: float
    """Share of ``memory_gbs`` that an exact search reaches, by a kernel of ours where one runs."""
    stock: float
    """Share of ``memory_gbs`` that torch's own operations reach in other searches, attention and
    heads."""
    overhead_ms: float
    """Of a step, for what is neither bytes nor products."""
    all_to_all_ms: float
    """Of an all-to-all that carries next to nothing, between the devices of a node: what is sent
    takes its time beside."""
    all_reduce_ms: float
    """Of an all-reduce, likewise."""
    hop_ms: float
    """More of either each time that the number of nodes doubles."""
    source: str
    """Where the numbers are from."""

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise ValueError(f"device is cuda or cpu, got {self.device!r}")
        for name in _NUMBERS:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.devices != int(self.devices):
            raise ValueError(f"devices must be a whole number, got {self.devices!r}")
        if not isinstance(self.source, str) or not self.source:
            raise ValueError("source must say where the numbers are from")


_NUMBERS = [f.name for f in fields(Node) if f.name not in ("name", "device", "source")]


@dataclass(frozen=True)
class Cluster:
    """Equal nodes. Ranks are counted node by node."""

    nodes: int
    local_world_size: int
    """Ranks of a node."""
    node: Node

    @property
    def name(self) -> str:
        """As it is given: 2x8xH100-80."""
        return f"{self.nodes}x{self.local_world_size}x{self.node.name}"

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.nodes * self.local_world_size

    @property
    def memory(self) -> int:
        """Bytes of a rank's device."""
        return int(self.node.memory_gb * GB)

    @property
    def host_memory(self) -> int:
        """Bytes of the host that a rank may use; none beside its own where the device is a CPU."""
        if self.node.device == "cpu":
            return 0
        return int(self.node.host_memory_gb * GB / self.local_world_size)

    def exchange_seconds(self, sent: float) -> float:
        """Of an all-to-all in which a rank sends ``sent`` bytes, evenly to all ranks and itself.
        The links within and between nodes work at once.
        """
        within = sent * (self.local_world_size - 1) / self.world_size
        beyond = sent * (self.world_size - self.local_world_size) / self.world_size
        return max(within / self.node.intra_gbs, beyond / self.node.inter_gbs) / GB

    def all_reduce_seconds(self, size: float) -> float:
        """Of ``size`` bytes that every rank has: each sends and receives them twice but for its
        share.
        """
        return 2 * self.exchange_seconds(size)

    def call_seconds(self, all_to_all: float, all_reduce: float) -> float:
        """Of so many collectives, however little they carry."""
        if self.world_size == 1:
            return 0.0
        node, hops = self.node, math.log2(self.nodes)
        within = all_to_all * node.all_to_all_ms + all_reduce * node.all_reduce_ms
        return (within + (all_to_all + all_reduce) * hops * node.hop_ms) / 1e3


def cluster_of_job(
    world_size: int, local_world_size: int, device: Device, memory_gib: float, model: str = ""
) -> Cluster:
    """The nodes that a job runs on, as the catalogue knows them: of its GPUs' model, or of an
    H100 or CPU, with as much memory as the job may count on.

    Args:
        world_size: ranks of the job.
        local_world_size: those of each host.
        device: of a rank.
        memory_gib: of a rank, in GiB.
        model: of the GPU as the driver names it, e.g. NVIDIA A100-SXM4-80GB.
    """
    nodes = load_nodes()
    likely = "CPU-SPR" if device == "cpu" else "H100-80"
    words = re.split(r"\W+", model)
    alike = [name for name in nodes if name.split("-")[0] in words]
    node = nodes[max(alike, key=lambda name: name.split("-")[-1] in model, default=likely)]
    if world_size % local_world_size:  # unequal hosts: every rank as far away as another host
        local_world_size = 1
    memory_gb = memory_gib * 2**30 / GB
    node = replace(node, memory_gb=memory_gb, devices=max(node.devices, local_world_size))
    return Cluster(world_size // local_world_size, local_world_size, node)


def load_nodes(file: Path | None = None) -> dict[str, Node]:
    """The built-in catalogue, with the entries of a user's file over it.

    Raises:
        PlanError: the file cannot be read, or describes no nodes.
    """
    nodes = _read(BUILT_IN)
    return nodes if file is None else nodes | _read(file)


def parse_cluster(text: str, nodes: dict[str, Node]) -> Cluster:
    """``2x8xH100-80``: 2 nodes of 8 devices each; ``8xH100-80``: one node.

    Raises:
        PlanError: another form, an unknown node, more devices than a node has.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x(.+)", text.strip())
    if match is None:
        raise PlanError(
            f"{text!r} is no cluster: write NODESxDEVICESxNODE, as 2x8xH100-80, or 8xH100-80 for "
            f"one node. Known nodes: {', '.join(nodes)}."
        )
    count, devices, name = int(match[1] or 1), int(match[2]), match[3]
    by_lower = {known.lower(): node for known, node in nodes.items()}
    node = by_lower.get(name.lower())
    if node is None:
        raise PlanError(
            f"There is no node {name!r} in {text!r}.{_nearest(name, nodes)} Known nodes: "
            f"{', '.join(nodes)}; --nodes FILE.toml adds your own."
        )
    if not 1 <= devices <= node.devices or count < 1:
        raise PlanError(
            f"{text!r} means nodes: {count}, devices of each: {devices}. There must be one node at "
            f"least, and a node of {node.name} has 1 to {node.devices} devices."
        )
    return Cluster(count, devices, node)


def _nearest(name: str, known: Iterable[str]) -> str:
    by_upper = {candidate.upper(): candidate for candidate in known}
    near = difflib.get_close_matches(name.upper(), by_upper, n=2, cutoff=0.4)
    return f" Did you mean {' or '.join(by_upper[upper] for upper in near)}?" if near else ""


def _read(file: Path) -> dict[str, Node]:
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"The nodes of {file} cannot be read: {error}") from error
    return {name: _node(file, name, entry) for name, entry in entries.items()}


def _node(file: Path, name: str, entry: Any) -> Node:
    wanted = {f.name for f in fields(Node)} - {"name"}
    given = set(entry) if isinstance(entry, dict) else set()
    if given != wanted:
        raise PlanError(
            f"{file}, [{name}]: missing {sorted(wanted - given)}, unknown {sorted(given - wanted)}."
            f" sharding/nodes.toml has numbers to copy; twofold plan --calibrate measures them."
        )
    try:
        return Node(name=name, **entry)
    except ValueError as error:
        raise PlanError(f"{file}, [{name}]: {error}.") from error
