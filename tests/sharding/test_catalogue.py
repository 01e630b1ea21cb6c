"""The hardware catalogue: what can be asked for, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sharding.catalogue import Cluster, load_nodes, parse_cluster
from sharding.errors import PlanError

NODES = load_nodes()
MINE = """
[mine]
device = "cpu"
devices = 4
memory_gb = 8
memory_gbs = 20
host_memory_gb = 32
host_gbs = 20
intra_gbs = 2
inter_gbs = 1
tflops = 0.1
gather = 0.2
update = 0.1
search = 0.2
stock = 0.2
overhead_ms = 3
all_to_all_ms = 0.5
all_reduce_ms = 1
hop_ms = 0.1
source = "measured"
"""


def test_the_nodes_of_the_issue_are_there_with_their_sources() -> None:
    assert {*NODES} >= {"A100-40", "A100-80", "H100-80", "H200-141", "B200", "L4", "CPU-SPR"}
    assert all(node.source for node in NODES.values())


def test_nodes_devices_and_kind_are_read() -> None:
    cluster = parse_cluster("2x8xH100-80", NODES)
    assert (cluster.nodes, cluster.local_world_size, cluster.world_size) == (2, 8, 16)
    assert cluster.memory == 80 * 10**9
    assert cluster.name == "2x8xH100-80"


def test_one_node_needs_no_count_and_case_does_not_matter() -> None:
    assert parse_cluster("4xh100-80", NODES) == parse_cluster("1x4xH100-80", NODES)


@pytest.mark.parametrize("given", ["8xH100", "1x8xh100-8", "2x8xA100-41"])
def test_an_unknown_node_is_answered_with_near_ones(given: str) -> None:
    with pytest.raises(PlanError, match=r"Did you mean (H100-80|A100-40)"):
        parse_cluster(given, NODES)


def test_what_is_near_nothing_is_answered_with_all() -> None:
    with pytest.raises(PlanError, match=r"no node 'zzz'.*Known nodes: A100-40"):
        parse_cluster("8xzzz", NODES)


@pytest.mark.parametrize("given", ["H100-80", "8", "", "two x 8 x L4"])
def test_another_form_is_refused_with_the_form_that_is_wanted(given: str) -> None:
    with pytest.raises(PlanError, match="NODESxDEVICESxNODE"):
        parse_cluster(given, NODES)


@pytest.mark.parametrize("given", ["1x9xH100-80", "0x8xH100-80", "2x0xL4"])
def test_no_more_devices_than_a_node_has_and_at_least_one(given: str) -> None:
    with pytest.raises(PlanError, match="1 to 8"):
        parse_cluster(given, NODES)


def test_a_file_adds_nodes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    nodes = load_nodes(file)
    assert {*nodes} == {*NODES, "mine"}
    assert parse_cluster("2x4xmine", nodes).memory == 8 * 10**9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_gb = 8", "", r"missing \['memory_gb'\]"),
        ("memory_gb = 8", "memory_gb = 8\ncolour = 1", r"unknown \['colour'\]"),
        ("memory_gb = 8", "memory_gb = -8", "memory_gb must be a positive number"),
        ("memory_gb = 8", "memory_gb = nan", "memory_gb must be a positive number"),
        ("memory_gb = 8", "memory_gb = true", "memory_gb must be a positive number"),
        ("devices = 4", "devices = 4.5", "devices must be a whole number"),
        ('device = "cpu"', 'device = "tpu"', "device is cuda or cpu"),
        ("[mine]", "[mine", "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINE.replace(old, new))
    with pytest.raises(PlanError, match=message):
        load_nodes(file)


def test_the_slower_link_decides_an_exchange() -> None:
    # 2 nodes of 2: of 4 GB, a quarter stays, a quarter goes to the neighbour, half to the others
    node = dataclasses.replace(NODES["H100-80"], intra_gbs=10, inter_gbs=1)
    assert Cluster(2, 2, node).exchange_seconds(4e9) == pytest.approx(2.0)
    assert Cluster(1, 2, node).exchange_seconds(4e9) == pytest.approx(0.2)
    assert Cluster(1, 1, node).exchange_seconds(4e9) == 0


def test_a_call_costs_its_latency_and_a_hop_for_each_doubling_of_the_nodes() -> None:
    latencies = {"all_to_all_ms": 0.5, "all_reduce_ms": 1.0, "hop_ms": 0.25}
    node = dataclasses.replace(NODES["H100-80"], **latencies)
    assert Cluster(1, 8, node).call_seconds(2, 3) == pytest.approx(4e-3)
    # 5 calls, each three times a quarter of a millisecond more
    assert Cluster(8, 8, node).call_seconds(2, 3) == pytest.approx(7.75e-3)
    assert Cluster(1, 1, node).call_seconds(2, 3) == 0
