"""Why a deployment cannot be placed: what was asked, what is there, what lacks. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.wording import counted
from launcher.capacity import MemoryRoom, Need, free, in_words, worker_slots
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig, Strategy, TopologyKind
from launcher.errors import Refused
from launcher.placement import Zone, ranks_on_head, zones
from launcher.plan import PendingResources

_MAX_NAMES = 4
"""Nodes that are named of those that are alike."""
_MAX_LINES = 20
"""Kinds of nodes that are told."""
_ANY_NUMBER = 1 << 30
"""More ranks than anybody asks for."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many ranks have a place, were they not to be in equal parts; None: nobody asked."""

    on_head: int | None = None
    elsewhere: int | None = None

    @property
    def ranks(self) -> int | None:
        """On head and elsewhere; None: not known."""
        if self.on_head is None and self.elsewhere is None:
            return None
        return (self.on_head or 0) + (self.elsewhere or 0)


class DoesNotFit(Refused):
    """The cluster is too small for what was asked; the message says where and by how much.

    Attributes:
        room: What there is room for, where it is known.
    """

    room: Room = Room()


class MustGrow(DoesNotFit):
    """It does not fit yet, but the cluster adds nodes when asked.

    Attributes:
        pending: What to ask it for.
    """

    def __init__(self, message: str, hint: str, pending: PendingResources) -> None:
        super().__init__(message, hint)
        self.pending = pending


def shortage(
    config: LaunchConfig, cluster: Cluster, need: Need, memory_room: MemoryRoom
) -> DoesNotFit:
    """The error for a placement that failed."""
    asked = zones(config, cluster)
    slots = {
        node.id: slot
        for zone in asked
        for node, slot in zip(zone.nodes, _slots(zone, need, memory_room), strict=True)
    }
    rooms = [_room(config, need, [slots[node.id] for node in zone.nodes]) for zone in asked]
    lines = [_summary(config, need, asked, rooms), *_node_lines(config, cluster, need, slots)]
    message = "\n    ".join(lines)
    missing = _addable_ranks(config, cluster, need, asked, rooms)
    error = DoesNotFit(message)
    if missing:
        pending = PendingResources(
            num_ranks=asked[-1].num_ranks,  # those that fit now would stand on what is there
            strategy=group_strategy(config),
            bundles=(need.bundle,) * need.tp,
            beside_head=not asked[-1].head_first,
        )
        requested = f"{counted(missing, 'rank')} of {in_words(need.of_a_rank)}"
        error = MustGrow(f"{message}\nthe cluster can grow: it lacks {requested}", "", pending)
    by_zone = {zone.is_head: room for zone, room in zip(asked, rooms, strict=True)}
    error.room = Room(by_zone.get(True), by_zone.get(False))
    return error


def group_strategy(config: LaunchConfig) -> str:
    """Ray's strategy for the bundles of a rank."""
    return "PACK" if config.topology.strategy is Strategy.span else "STRICT_PACK"


def _slots(zone: Zone, need: Need, memory_room: MemoryRoom) -> list[int]:
    most = _ANY_NUMBER if need.limits else zone.num_ranks
    return worker_slots(zone.nodes, need, most, memory_room, crowd=True)


def _room(config: LaunchConfig, need: Need, slots: Sequence[int]) -> int:
    """How many ranks fit, were they not to be in equal parts."""
    if config.topology.strategy is Strategy.span:
        return sum(slots) // need.tp
    return sum(slot // need.tp for slot in slots)


def _addable_ranks(
    config: LaunchConfig, cluster: Cluster, need: Need, asked: Sequence[Zone], rooms: Sequence[int]
) -> int:
    """How many ranks have no place now and get one if the cluster grows; 0: growing does not help.

    New nodes never are the head, so what it lacks stays lacking.
    """
    grows = config.topology.kind in (TopologyKind.auto, TopologyKind.remote_only)
    if not grows or not set(need.limits) <= set(cluster.can_add) or not cluster.can_grow:
        return 0
    if any(zone.is_head and room < zone.num_ranks for zone, room in zip(asked, rooms, strict=True)):
        return 0
    # With `strict` there can be room enough, but not in equal parts.
    return max(1, asked[-1].num_ranks - rooms[-1])


def _summary(config: LaunchConfig, need: Need, asked: Sequence[Zone], rooms: Sequence[int]) -> str:
    topology = config.topology
    words = [f"dp={config.dp}", f"tp={config.tp}", f"topology={topology.kind.name}"]
    if topology.dp_local is not None:
        words.append(f"topology.dp_local={topology.dp_local}")
    if topology.strategy is not Strategy.fill:
        words.append(f"topology.strategy={topology.strategy.name}")
    words.append(f"engine.device={config.engine.device.name}")
    parts = [
        f"{min(room, zone.num_ranks)} of {counted(zone.num_ranks, 'rank')}{_where(zone)}"
        for zone, room in zip(asked, rooms, strict=True)
        if zone.num_ranks
    ]
    packed = "" if need.tp == 1 else " on one node"
    if topology.strategy is Strategy.span:
        packed = " on any nodes"
    takes = f"a rank takes {in_words(need.of_a_rank)}{packed}"
    return f"{' '.join(words)} does not fit: room for {', '.join(parts)}; {takes}" + _equal(config)


def _where(zone: Zone) -> str:
    if zone.is_head:
        return " on the head"
    if zone.head_first:
        return ""
    return " on other nodes" if zone.nodes else " on other nodes, of which there are none"


def _equal(config: LaunchConfig) -> str:
    if config.topology.strategy is not Strategy.strict:
        return ""
    local = ranks_on_head(config)
    return f", and every node used takes {counted(local, 'rank') if local else 'the same number'}"


def _node_lines(
    config: LaunchConfig, cluster: Cluster, need: Need, slots: dict[str, int]
) -> list[str]:
    """What each node has and lacks; nodes that are alike share a line."""
    alike: dict[str, list[str]] = defaultdict(list)
    for node in cluster.nodes:
        verdict = f"not used by topology={config.topology.kind.name}"
        if node.id in slots:
            verdict = _verdict(config, node, need, slots[node.id])
        elif "GPU" in need.bundle and not node.gpus:
            continue
        holders = ", ".join(cluster.holders.get(node.id, ()))
        has = ", ".join(_has(node, name, holders) for name in (need.limits or need.bundle))
        alike[f"{has}: {verdict}"].append(node.id)
    lines = [f"{_names(ids)}: {line}" for line, ids in alike.items()]
    return [*lines[:_MAX_LINES], *["..."] * (len(lines) > _MAX_LINES)]


def _has(node: Node, resource: str, holders: str) -> str:
    """`8 GPUs, 2 in use by a, b`."""
    total = node.gpus if resource == "GPU" else node.cpus
    in_use = total - free(node, resource)
    has = counted(total, resource) if total else f"no {resource}"
    return f"{has}, {in_use} in use by {holders or 'other work'}" if in_use else has


def _verdict(config: LaunchConfig, node: Node, need: Need, slot: int) -> str:
    workers = 1 if config.topology.strategy is Strategy.span else need.tp
    if slot >= workers:
        if workers < need.tp:
            return f"room for {counted(slot, 'worker')}"
        return f"room for {counted(slot // need.tp, 'rank')}"
    lacking = {
        name: number * workers - free(node, name)
        for name, number in need.limits.items()
        if number * workers > free(node, name)
    }
    what = "rank" if workers == need.tp else "worker"
    return f"lacks {in_words(lacking) or 'memory'} for a {what}"


def _names(ids: Sequence[str]) -> str:
    if len(ids) <= _MAX_NAMES:
        return ", ".join(ids)
    return f"{', '.join(ids[: _MAX_NAMES - 1])} and {len(ids) - _MAX_NAMES + 1} more"
