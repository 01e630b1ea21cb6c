"""Named resources: one for each node of the catalogue, under an entry point of the set-up."""

from __future__ import annotations

import importlib
import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from torchx.specs import Resource

from sharding.catalogue import load_nodes
from tests.setup_config import setup_config
from torchx_specs import resources

REPOSITORY = Path(__file__).parents[2]


def entry_points() -> dict[str, str]:
    """Those of setup.cfg; what is installed may be older."""
    lines = setup_config()["options.entry_points"]["torchx.named_resources"].split("\n")
    return dict(line.split(" = ") for line in lines if line)


def named(name: str) -> Resource:
    module, _, function = entry_points()[name].partition(":")
    return getattr(importlib.import_module(module), function)()


def test_an_entry_point_has_the_name_of_its_function() -> None:
    for name, target in entry_points().items():
        assert target == f"torchx_specs.resources:{name}"


def test_every_node_of_the_catalogue_has_a_resource() -> None:
    nodes = tomllib.loads((REPOSITORY / "sharding" / "nodes.toml").read_text())
    source = Path(resources.__file__).read_text()
    assert len(entry_points()) == len(nodes)
    assert [name for name in nodes if f'_node("{name}"' not in source] == []


@pytest.mark.parametrize(
    ("name", "node", "gpus"),
    [("h100x8", "H100-80", 8), ("a100_40x8", "A100-40", 8), ("cpu_spr", "CPU-SPR", 0)],
)
def test_devices_and_memory_are_the_catalogues(name: str, node: str, gpus: int) -> None:
    known = load_nodes(None)[node]
    assert named(name).gpu == gpus
    # MB of 10^6 bytes; 4 % are left to the system
    assert named(name).memMB == pytest.approx(known.host_memory_gb * 960, abs=1)


def test_torchx_finds_an_installed_one_by_name() -> None:
    installed = importlib.metadata.entry_points(group="torchx.named_resources")
    assert "h100x8" in installed.names, "set up before setup.cfg named resources: make setup"
    from torchx.specs import resource

    assert resource(h="h100x8") == resources.h100x8()
