"""The nodes of an emulated cluster: pure."""

from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import AutoClusterOptions, EmulatedClusterOptions, TopologyKind

ONE_NODE = (TopologyKind.head_only, TopologyKind.auto)
"""Topologies that make sense with the head alone."""


def emulated_cluster(
    options: EmulatedClusterOptions | AutoClusterOptions, topology: TopologyKind, machine: Cluster
) -> Cluster:
    """Nodes that share one machine: `head`, `node-1`, ...

    Args:
        options: How many nodes of which size; with cluster=auto as many as the topology needs.
        topology: What will be placed on them.
        machine: The machine as it is.
    """
    num_nodes = 1 if topology in ONE_NODE else 2
    cpus = gpus = None
    if isinstance(options, EmulatedClusterOptions):
        num_nodes = options.nodes or num_nodes
        cpus, gpus = options.cpus_per_node, options.gpus_per_node
    real = machine.head
    nodes = (
        Node(
            id=f"node-{index}" if index else "head",
            head=not index,
            address=real.address,
            cpus=max(1, real.cpus // num_nodes) if cpus is None else cpus,
            memory_bytes=real.memory_bytes // num_nodes,
            gpus=real.gpus // num_nodes + (index < real.gpus % num_nodes) if gpus is None else gpus,
            gpu_memory_bytes=real.gpu_memory_bytes,
        )
        for index in range(num_nodes)
    )
    return Cluster(
        nodes=tuple(nodes),
        kind=ClusterKind.emulated,
        head_names=machine.head_names,
        head_interfaces=machine.head_interfaces,
    )
