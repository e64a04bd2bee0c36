"""Which node each worker of each rank runs on: pure, filter -> score -> pick."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.capacity import MemoryRoom, Need, worker_slots
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig, Strategy, TopologyKind
from launcher.strategies import fill, span, spread, strict

Home = tuple[Node, ...]
"""The node of each worker of a rank; the engine core runs on the first."""


@dataclass(frozen=True, slots=True)
class Zone:
    """Nodes that share a number of ranks among them."""

    nodes: tuple[Node, ...]
    num_ranks: int
    is_head: bool
    """The head alone, with exactly so many ranks."""
    head_first: bool = False
    """The head is the first of the nodes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is placed on one node."""

    node: Node
    num_ranks: int
    """Whose engine core runs there."""
    num_workers: int


def zones(config: LaunchConfig, cluster: Cluster) -> list[Zone]:
    """Filter: the nodes that a topology uses, and how many ranks go where."""
    head, others, dp = cluster.head, cluster.others, config.dp
    match config.topology.kind:
        case TopologyKind.head_only:
            return [Zone((head,), dp, is_head=True)]
        case TopologyKind.remote_only:
            return [Zone(others, dp, is_head=False)]
        case TopologyKind.auto if config.topology.dp_local is None:
            return [Zone((head, *others), dp, is_head=False, head_first=True)]
    local = ranks_on_head(config)
    assert local is not None
    return [Zone((head,), local, is_head=True), Zone(others, dp - local, is_head=False)]


def ranks_on_head(config: LaunchConfig) -> int | None:
    """How many ranks the head must have; None: as many as it takes."""
    if config.topology.dp_local is not None:
        return config.topology.dp_local
    match config.topology.kind:
        case TopologyKind.head_only:
            return config.dp
        case TopologyKind.split:
            return (config.dp + 1) // 2
        case TopologyKind.remote_only:
            return 0
        case TopologyKind.auto:
            return None


def usable_nodes(config: LaunchConfig, cluster: Cluster) -> Iterator[Node]:
    """Every node that the topology may put ranks on."""
    for zone in zones(config, cluster):
        if zone.num_ranks:
            yield from zone.nodes


def place(
    config: LaunchConfig, cluster: Cluster, need: Need, memory_room: MemoryRoom
) -> tuple[Home, ...] | None:
    """The home of each rank: the head's ranks first, then node by node.

    Returns:
        None if not all ranks have a place; none has one then.
    """
    homes: list[Home] = []
    for zone in zones(config, cluster):
        # Ranks crowd only where that is the one way, as `strict` can make it.
        for crowd in (False, True):
            slots = worker_slots(zone.nodes, need, zone.num_ranks, memory_room, crowd=crowd)
            placed = _placed(config, zone, slots, need)
            if placed is not None or need.limits:
                break
        if placed is None:
            return None
        homes += placed
    return tuple(homes)


def loads(homes: Sequence[Home]) -> list[Load]:
    """Every node that has workers, in the order of `homes`."""
    nodes: dict[str, Node] = {}
    workers: Counter[str] = Counter()
    for home in homes:
        for node in home[:1] if home[0] is home[-1] else home:  # as most are
            nodes[node.id] = node
            workers[node.id] += len(home) if home[0] is home[-1] else 1
    ranks = Counter(home[0].id for home in homes)
    return [Load(node, ranks[id], workers[id]) for id, node in nodes.items()]


def _placed(
    config: LaunchConfig, zone: Zone, slots: Sequence[int], need: Need
) -> list[Home] | None:
    """Score and pick: the homes of a zone's ranks."""
    strategy, nodes = config.topology.strategy, zone.nodes
    if strategy is Strategy.span:
        spanned = span(zone.num_ranks, need.tp, slots, head_first=zone.head_first)
        if spanned is None:
            return None
        return [tuple(nodes[index] for index in workers) for workers in spanned]
    counts = _counts(config, zone, [slot // need.tp for slot in slots])
    if counts is None:
        return None
    homes = ([(node,) * need.tp] * count for node, count in zip(nodes, counts, strict=True))
    return list(itertools.chain.from_iterable(homes))


def _counts(config: LaunchConfig, zone: Zone, rooms: Sequence[int]) -> list[int] | None:
    """How many ranks each node of a zone gets."""
    if zone.is_head:
        return [zone.num_ranks] if rooms[0] >= zone.num_ranks else None
    match config.topology.strategy:
        case Strategy.strict:
            each = ranks_on_head(config) or None
            return strict(zone.num_ranks, rooms, each=each, head_first=zone.head_first)
        case Strategy.spread:
            return spread(zone.num_ranks, rooms)
        case _:
            return fill(zone.num_ranks, rooms, head_first=zone.head_first)
