"""Which node each rank runs on: pure, filter -> score -> pick."""

from collections import Counter
from collections.abc import Callable, Sequence

from engine.config import Device
from engine.wording import counted
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig, TopologyKind
from launcher.errors import Refused


class DoesNotFit(Refused):
    """The cluster is too small for what was asked; the message says where and by how much."""


def place(config: LaunchConfig, cluster: Cluster, device: Device) -> tuple[Node, ...]:
    """The node of each rank, in rank order.

    Raises:
        DoesNotFit: Not all ranks have a place; none is placed then.
    """
    allowed = allowed_nodes(config.topology.kind, cluster)
    homes = _fill(config.dp, allowed, lambda node: _capacity(node, config, device))
    if len(homes) < config.dp:
        raise DoesNotFit(_shortage(config, cluster, allowed))
    return homes


def allowed_nodes(topology: TopologyKind, cluster: Cluster) -> list[Node]:
    """The nodes that a topology uses, the one to fill first in front."""
    match topology:
        case TopologyKind.head_only:
            return [cluster.head]


def ranks_per_node(homes: Sequence[Node]) -> list[tuple[Node, int]]:
    """Each node that has ranks, with their number, in the order of `homes`."""
    nodes = {home.id: home for home in homes}
    counts = Counter(home.id for home in homes)
    return [(nodes[id], count) for id, count in counts.items()]


def _capacity(node: Node, config: LaunchConfig, device: Device) -> int:
    """How many ranks a node can take."""
    if device is Device.cuda:
        return node.free_gpus // config.tp
    # Processes of one machine share its CPUs: too few make a rank slower, not impossible, and the
    # plan warns.
    return config.dp


def _fill(
    num_ranks: int, nodes: Sequence[Node], capacity: Callable[[Node], int]
) -> tuple[Node, ...]:
    """Puts as many ranks as fit on each node in turn; the result is short if not all fit."""
    homes: list[Node] = []
    for node in nodes:
        homes += [node] * min(capacity(node), num_ranks - len(homes))
    return tuple(homes)


def _shortage(config: LaunchConfig, cluster: Cluster, allowed: Sequence[Node]) -> str:
    asked = config.dp * config.tp
    device = config.engine.device.name
    found = []
    for node in cluster.nodes:
        line = f"{node.id} has {node.free_gpus} of {node.gpus} free"
        if node in allowed:
            found.append(f"{line}, {max(0, asked - node.free_gpus)} too few")
        elif node.gpus:
            found.append(f"{line}, not used by topology={config.topology.kind.name}")
    return (
        f"dp={config.dp} tp={config.tp} engine.device={device} needs {counted(asked, 'GPU')}"
        f" with topology={config.topology.kind.name}: {'; '.join(found)}"
    )
