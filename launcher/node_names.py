"""Names for nodes whose own ids change at every start, as Ray's do: pure."""

import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterable

import msgspec

from launcher.cluster import Node

NAME_LABEL = "flotilla-node"
"""A node with this label, and no other with the same, is called what it says."""


def with_stable_names(nodes: Iterable[Node]) -> dict[str, Node]:
    """The nodes under names that a plan can keep, by the ids they had.

    The name is the label's if the node has one, else `head`, `node-1`, `node-2`, ...: numbered by
    address, then by hardware, and only among nodes alike in all that by their ids.
    """
    ordered = sorted(nodes, key=_place)
    labels = Counter(node.labels.get(NAME_LABEL, "") for node in ordered)
    taken = {label for label, count in labels.items() if label and count == 1}
    numbered = (name for number in itertools.count(1) if (name := f"node-{number}") not in taken)
    renamed = {}
    for node in ordered:
        name = node.labels.get(NAME_LABEL, "")
        if name not in taken:
            name = "head" if node.head and "head" not in taken else next(numbered)
        renamed[node.id] = msgspec.structs.replace(node, id=name)
    return renamed


def _place(node: Node) -> tuple[object, ...]:
    """The head first, addresses in numerical order, whatever the ids are."""
    try:
        ip = ipaddress.ip_address(node.address)
        address: tuple[object, ...] = (0, ip.version, int(ip))
    except ValueError:
        address = (1, 0, 0, node.address)
    hardware = (-node.gpus, -node.cpus, -node.memory_bytes, sorted(node.labels.items()))
    return (not node.head, address, hardware, node.id)
