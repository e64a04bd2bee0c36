"""What means the head, and names that a plan can keep."""

from typing import Any

import pytest

from launcher.addresses import means_head, with_head_address
from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import AutoClusterOptions, EmulatedClusterOptions, HeadOptions, TopologyKind
from launcher.emulation import emulated_cluster
from launcher.errors import Refused
from launcher.node_names import NAME_LABEL, with_stable_names
from tests.launcher.samples import GIB, cluster_of

CLUSTER = Cluster(
    nodes=(Node(id="a", address="10.0.0.2"), Node(id="main", head=True, address="10.0.0.1")),
    head_names=("node7", "node7.example.org", "10.1.0.1", "fd00::1"),
    head_interfaces={"lo": "127.0.0.1", "eth0": "10.0.0.1", "ib0": "10.1.0.1"},
)


def address_of(**options: Any) -> str:
    return with_head_address(CLUSTER, HeadOptions(**options)).head.address


@pytest.mark.parametrize(
    "name",
    [
        *(None, "localhost", "LOCALHOST.", "127.0.0.1", "127.0.1.1", "::1", "[::1]"),
        *("main", "node7", "Node7", "node7.example.org", "10.0.0.1"),
    ],
)
def test_every_name_of_the_head_means_the_address_it_was_found_under(name: str | None):
    assert address_of(address=name) == "10.0.0.1"


@pytest.mark.parametrize(
    ("name", "address"),
    [("10.1.0.1", "10.1.0.1"), ("fd00:0::1", "fd00::1"), ("[fd00::1]", "fd00::1")],
)
def test_any_address_of_the_head_is_what_other_nodes_use(name: str, address: str):
    assert address_of(address=name) == address


def test_an_interface_has_the_address():
    assert address_of(interface="ib0") == "10.1.0.1"
    assert address_of(interface="ib0", address="localhost") == "10.1.0.1"
    assert address_of(interface="ib0", address="10.1.0.1") == "10.1.0.1"


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            {"address": "10.0.0.2"},
            "head.address must mean the head (main, 10.0.0.1): 10.0.0.2",
            "head.address=10.0.0.1",
        ),
        (
            {"address": "0.0.0.0"},
            "head.address must mean the head (main, 10.0.0.1): 0.0.0.0",
            "head.address=10.0.0.1",
        ),
        (
            {"interface": "ib1"},
            "head.interface must be one of eth0, ib0: ib1",
            "head.interface=ib0",
        ),
        (
            {"interface": "lo"},
            "head.interface must be one of eth0, ib0: lo",
            "head.interface=eth0",
        ),
        (
            {"interface": "ib0", "address": "10.0.0.1"},
            "head.address must be that of head.interface=ib0 (10.1.0.1): 10.0.0.1",
            "head.address=null",
        ),
    ],
)
def test_what_is_not_the_heads_is_refused(options: dict[str, str], message: str, hint: str):
    with pytest.raises(Refused) as refused:
        address_of(**options)
    assert (str(refused.value), refused.value.hint) == (message, hint)
    key, _, value = hint.partition("=")
    name = key.removeprefix("head.")
    address_of(**options | {name: None if value == "null" else value})


def test_the_loopback_interface_is_one_of_a_head_without_other_nodes():
    alone = Cluster(nodes=CLUSTER.nodes[1:], head_interfaces=CLUSTER.head_interfaces)
    assert with_head_address(alone, HeadOptions(interface="lo")).head.address == "127.0.0.1"


def test_an_interface_of_an_inventory_that_names_none():
    with pytest.raises(Refused) as refused:
        with_head_address(cluster_of(), HeadOptions(interface="eth0"))
    assert refused.value.hint == "head.interface=null"


def test_the_other_nodes_are_not_the_head():
    assert not means_head(CLUSTER, "10.0.0.2")
    assert not means_head(CLUSTER, "a")


def test_names_do_not_depend_on_ids_or_order():
    found = [
        Node(id="f3", address="10.0.0.10"),
        Node(id="a1", address="10.0.0.9", gpus=2),
        Node(id="77", address="10.0.0.10", gpus=8),
        Node(id="c0", address="10.0.0.200", head=True),
        Node(id="e5", address="10.0.0.3", labels={NAME_LABEL: "big"}),
        Node(id="b2", address="10.0.0.4", labels={NAME_LABEL: "twin"}),
        Node(id="b3", address="10.0.0.5", labels={NAME_LABEL: "twin"}),
    ]
    names = {id: node.id for id, node in with_stable_names(found).items()}
    assert names == {
        **{"c0": "head", "e5": "big", "b2": "node-1", "b3": "node-2"},
        **{"a1": "node-3", "77": "node-4", "f3": "node-5"},
    }
    assert with_stable_names(reversed(found)) == with_stable_names(found)


def test_a_label_can_take_any_name():
    found = [
        Node(id="x", head=True),
        Node(id="y", labels={NAME_LABEL: "head"}),
        Node(id="z", labels={NAME_LABEL: "node-1"}),
    ]
    assert {id: node.id for id, node in with_stable_names(found).items()} == {
        **{"x": "node-2", "y": "head", "z": "node-1"}
    }


def test_emulated_nodes_share_the_machine():
    machine = cluster_of(cpus=9, gpus=4, gpu_memory_bytes=GIB)
    three = emulated_cluster(EmulatedClusterOptions(nodes=3), TopologyKind.auto, machine)
    assert [node.id for node in three.nodes] == ["head", "node-1", "node-2"]
    assert {(node.cpus, node.memory_bytes) for node in three.nodes} == {(3, 32 * GIB // 3)}
    assert [node.gpus for node in three.nodes] == [2, 1, 1]
    assert three.kind is ClusterKind.emulated
    assert len(emulated_cluster(AutoClusterOptions(), TopologyKind.remote_only, machine).nodes) == 2
    assert len(emulated_cluster(AutoClusterOptions(), TopologyKind.auto, machine).nodes) == 1
    said = EmulatedClusterOptions(nodes=2, cpus_per_node=0, gpus_per_node=8)
    assert [
        (node.cpus, node.gpus) for node in emulated_cluster(said, TopologyKind.split, machine).nodes
    ] == [(0, 8), (0, 8)]
