"""What a rank takes, and how much of that each node has room for: pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config import Device
from engine.wording import counted
from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import LaunchConfig, RayOptions

MemoryRoom = Callable[[Node], int | None]
"""How many ranks fit into a node's memory; None: no limit is known."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one rank takes of the nodes it is on."""

    tp: int
    gpus_per_worker: int
    cpus_per_worker: int
    cpus_are_a_limit: bool
    """Else too few CPUs make a rank slower, not impossible."""

    @classmethod
    def of(cls, config: LaunchConfig, cluster: Cluster, device: Device) -> "Need":
        """What a config's ranks take; processes of one machine share its CPUs, Ray's do not."""
        on_ray = isinstance(config.backend, RayOptions)
        return cls(
            tp=config.tp,
            gpus_per_worker=int(device is Device.cuda),
            cpus_per_worker=config.engine.threads or 1,
            cpus_are_a_limit=on_ray and cluster.kind is not ClusterKind.emulated,
        )

    @property
    def bundle(self) -> dict[str, int]:
        """Resources of one worker in Ray's words."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return gpus | {"CPU": self.cpus_per_worker}

    @property
    def limits(self) -> dict[str, int]:
        """Those of a worker's resources that a node can have too few of."""
        return {
            name: number
            for name, number in self.bundle.items()
            if name != "CPU" or self.cpus_are_a_limit
        }

    @property
    def of_a_rank(self) -> dict[str, int]:
        """What a rank takes, in words for people: what limits it, or else CPUs."""
        return {name: number * self.tp for name, number in (self.limits or self.bundle).items()}


def free(node: Node, resource: str) -> int:
    """How much of "CPU" or "GPU" nobody holds."""
    return node.free_gpus if resource == "GPU" else node.free_cpus


def worker_slots(
    nodes: Sequence[Node], need: Need, num_ranks: int, memory_room: MemoryRoom, *, crowd: bool
) -> list[int]:
    """How many workers each node can take.

    Where only memory limits them, nodes take ranks in proportion to their CPUs until all are
    placed; or, with `crowd`, as many as their memory holds.
    """
    rooms = [memory_room(node) for node in nodes]
    most = [num_ranks if room is None else min(room, num_ranks) for room in rooms]
    limits = need.limits
    if limits:
        slots = [need.tp * room for room in most]
        for name, number in limits.items():
            slots = [
                min(slot, free(node, name) // number)
                for slot, node in zip(slots, nodes, strict=True)
            ]
        return slots
    if crowd:
        return [room * need.tp for room in most]
    shares = [max(1, node.free_cpus // (need.tp * need.cpus_per_worker)) for node in nodes]

    def rooms_at(factor: int) -> list[int]:
        return [min(room, share * factor) for room, share in zip(most, shares, strict=True)]

    low, high = 1, max(1, num_ranks)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(rooms_at(middle)) >= num_ranks else (middle + 1, high)
    return [room * need.tp for room in rooms_at(low)]


def in_words(resources: dict[str, int]) -> str:
    """`2 GPUs and 1 CPU`."""
    return " and ".join(counted(number, name) for name, number in resources.items())
