"""What hardware there is: plain values, whoever found them."""

import math
from collections import Counter
from enum import Enum

import msgspec


class ClusterKind(Enum):
    """What stands behind the nodes."""

    machine = "machine"
    """This machine alone."""
    emulated = "emulated"
    """Several Ray nodes that all are this machine."""
    existing = "existing"
    """A Ray cluster."""
    file = "file"
    """Nothing: an inventory to plan for."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine. Zero memory means that nobody said how much there is."""

    id: str
    """Stable name in plans: an inventory's id, a label, or `head`, `node-1`, ..."""
    address: str = "127.0.0.1"
    head: bool = False
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0
    """Of each GPU."""
    labels: dict[str, str] = {}
    in_use: dict[str, float] = {}
    """Resources that other work holds: {"CPU": 2, "GPU": 1}."""

    @property
    def free_cpus(self) -> int:
        return max(0, self.cpus - math.ceil(self.in_use.get("CPU", 0)))

    @property
    def free_gpus(self) -> int:
        return max(0, self.gpus - math.ceil(self.in_use.get("GPU", 0)))


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """All machines; exactly one is the head, and no two have the same id.

    Raises:
        ValueError: Another number of heads, or an id twice.
    """

    nodes: tuple[Node, ...]
    kind: ClusterKind = ClusterKind.machine
    can_add: tuple[str, ...] = ()
    """Resources that it gets more of when asked, ("CPU", "GPU"), by adding nodes."""
    head_names: tuple[str, ...] = ()
    """Host names and addresses that mean the head too."""
    head_interfaces: dict[str, str] = {}
    """Address of each network interface of the head."""
    holders: dict[str, tuple[str, ...]] = {}
    """Names of the work that holds resources, by node id, as far as they are known."""

    def __post_init__(self) -> None:
        twice = [id for id, count in Counter(node.id for node in self.nodes).items() if count > 1]
        if twice:
            raise ValueError(f"nodes must have different ids: {', '.join(twice)}")
        heads = [node.id for node in self.nodes if node.head]
        if len(heads) != 1:
            raise ValueError(f"exactly one node must be the head: {', '.join(heads) or 'none is'}")

    @property
    def can_grow(self) -> bool:
        return bool(self.can_add)

    @property
    def head(self) -> Node:
        return next(node for node in self.nodes if node.head)

    @property
    def others(self) -> tuple[Node, ...]:
        """Every node but the head."""
        return tuple(node for node in self.nodes if not node.head)
