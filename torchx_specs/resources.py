"""Named resources: the whole nodes of ``sharding/nodes.toml``, for ``-h`` of any TorchX component.

Their names are entry points of the group ``torchx.named_resources`` (setup.cfg), so that TorchX
finds them wherever Twofold is installed. GPUs and memory are the catalogue's; CPU cores are those
of the machine that an entry's ``source`` names there.
"""

import tomllib
from pathlib import Path

from torchx.specs import Resource

_NODES = Path(__file__).parents[1] / "sharding" / "nodes.toml"
_SHARE = 0.96
"""Of a host's memory; the rest is left to the system, as by TorchX's own named resources."""


def a100_40x8() -> Resource:
    """8 x A100-40; two processors of 64 cores (DGX A100)."""
    return _node("A100-40", cores=128)


def a100_80x8() -> Resource:
    """8 x A100-80; two processors of 64 cores (DGX A100)."""
    return _node("A100-80", cores=128)


def h100x8() -> Resource:
    """8 x H100-80; two processors of 56 cores (DGX H100)."""
    return _node("H100-80", cores=112)


def h200x8() -> Resource:
    """8 x H200-141; two processors of 56 cores (DGX H200)."""
    return _node("H200-141", cores=112)


def b200x8() -> Resource:
    """8 x B200; two processors of 56 cores (DGX B200)."""
    return _node("B200", cores=112)


def l4x8() -> Resource:
    """8 x L4; 96 virtual CPUs (g2-standard-96)."""
    return _node("L4", cores=96)


def cpu_spr() -> Resource:
    """A node without GPUs: two processors of 56 cores (Xeon Platinum 8480+)."""
    return _node("CPU-SPR", cores=112)


def _node(name: str, cores: int) -> Resource:
    node = tomllib.loads(_NODES.read_text())[name]
    return Resource(
        cpu=cores,
        gpu=node["devices"] if node["device"] == "cuda" else 0,
        memMB=int(node["host_memory_gb"] * 1000 * _SHARE),
    )
