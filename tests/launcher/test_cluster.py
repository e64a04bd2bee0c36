"""Clusters as values, and inventories in files."""

import pytest

from launcher.cluster import Cluster, ClusterKind, Node
from launcher.errors import Refused
from launcher.inventory import read_inventory
from launcher.sizes import format_bytes, parse_bytes
from tests.launcher.samples import GIB

HEAD = Node(id="head", head=True)


def test_the_head_is_the_node_that_says_so():
    cluster = Cluster(nodes=(Node(id="a"), HEAD))
    assert cluster.head is HEAD


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((Node(id="a"), Node(id="b")), "exactly one node must be the head: none is"),
        ((HEAD, Node(id="b", head=True)), "exactly one node must be the head: head, b"),
        ((HEAD, Node(id="head")), "nodes must have different ids: head"),
        ((), "exactly one node must be the head: none is"),
    ],
)
def test_a_cluster_has_one_head_and_different_ids(nodes: tuple[Node, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Cluster(nodes=nodes)


def test_what_other_work_holds_is_not_free():
    node = Node(id="n", cpus=8, gpus=4, in_use={"CPU": 2.5, "GPU": 1})
    assert (node.free_cpus, node.free_gpus) == (5, 3)
    assert Node(id="n", gpus=1, in_use={"GPU": 2}).free_gpus == 0


INVENTORY = """
nodes:
  - {id: head, head: true, address: 10.0.0.1, cpus: 16, memory_bytes: 64GiB}
  - id: gpu-1
    address: 10.0.0.2
    gpus: 8
    gpu_memory_bytes: 80GiB
    cpus: 96
    memory_bytes: 1099511627776
    labels: {zone: a}
    in_use: {GPU: 2}
can_add: [CPU]
holders: {gpu-1: [training]}
"""


def test_an_inventory_is_a_cluster():
    assert read_inventory(INVENTORY, "nodes.yaml") == Cluster(
        nodes=(
            Node(id="head", head=True, address="10.0.0.1", cpus=16, memory_bytes=64 * GIB),
            Node(
                id="gpu-1",
                address="10.0.0.2",
                gpus=8,
                gpu_memory_bytes=80 * GIB,
                cpus=96,
                memory_bytes=1024 * GIB,
                labels={"zone": "a"},
                in_use={"GPU": 2},
            ),
        ),
        kind=ClusterKind.file,
        can_add=("CPU",),
        holders={"gpu-1": ("training",)},
    )


EXAMPLE = "nodes: [{id: head, head: true, cpus: 16, memory_bytes: 64GiB, gpus: 0}]"
ONE_HEAD = "head: true on one node, an id of its own on each"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nodes: [", "F: line 1 is not YAML: expected the node content, but found", EXAMPLE),
        ("", "F: nodes must be a list of nodes: None", EXAMPLE),
        ("[]", "F: nodes must be a list of nodes: None", EXAMPLE),
        ("nodes: 3", "F: nodes must be a list of nodes: 3", EXAMPLE),
        ("nodes: [a]", "F: node 0 must have keys: 'a'", EXAMPLE),
        ("nodes: [{id: a, head: true}]\nhost: 3", "F: there is no key host: 3", EXAMPLE),
        ("nodes: [{id: a, gpu: 3}]", "F: node a: there is no key gpu: 3", "keys: gpus"),
        (
            "nodes: [{id: a, cpus: many}]",
            "F: node a: cpus: Expected `int`, got `str`",
            EXAMPLE,
        ),
        (
            "nodes: [{id: a, labels: {x: 1}}]",
            "F: node a: labels[...]: Expected `str`, got `int`",
            EXAMPLE,
        ),
        ("nodes: [{cpus: 3}]", "F: node 0: id: Object missing required field `id`", EXAMPLE),
        (
            "nodes: [{id: a, memory_bytes: lots}]",
            "F: node a: memory_bytes must be a size such as 64GiB: 'lots'",
            "memory_bytes: 64GiB",
        ),
        ("nodes: [{id: a, gpus: -1}]", "F: node a: gpus must be at least 0: -1", "gpus: 0"),
        (
            "nodes: [{id: a, head: true}]\ncan_add: GPU",
            "F: can_add: Expected `array`, got `str`",
            EXAMPLE,
        ),
        ("nodes: [{id: a}]", "F: exactly one node must be the head: none is", ONE_HEAD),
        (
            "nodes: [{id: a, head: true}, {id: a}]",
            "F: nodes must have different ids: a",
            ONE_HEAD,
        ),
    ],
)
def test_a_mistake_in_an_inventory_is_named_with_file_node_and_key(
    text: str, message: str, hint: str
):
    with pytest.raises(Refused) as refused:
        read_inventory(text, "F")
    assert str(refused.value).startswith(message)
    assert refused.value.hint == hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2GB", 2 * 10**9),
        ("7B", 7),
    ],
)
def test_sizes_are_read_with_units(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 parsec", "-1GiB", "1e9", "0x10"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


def test_sizes_are_written_with_units():
    assert [format_bytes(size) for size in (0, 1023, 1536, 3 * 2**29, 2**41)] == [
        *("0 B", "1023 B", "1.5 KiB", "1.5 GiB", "2.0 TiB")
    ]
