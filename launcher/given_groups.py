"""Ranks in placement groups that somebody else has made: pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.wording import counted
from launcher.capacity import Need, in_words
from launcher.cluster import Cluster
from launcher.config import LaunchConfig, TopologyKind
from launcher.errors import Refused
from launcher.placement import Home
from launcher.plan import PlacementGroup


@dataclass(frozen=True, slots=True)
class GivenPlace:
    """Where the workers of one rank go."""

    home: Home
    group: str
    bundles: tuple[int, ...]
    """Index of each worker's bundle in the group."""


def given_places(
    config: LaunchConfig, cluster: Cluster, need: Need, given: Sequence[PlacementGroup]
) -> tuple[GivenPlace, ...]:
    """A place for each rank: the bundles that are large enough, in their order.

    A bundle needs the GPU of a worker, or the CPUs where there is none; beside a GPU it may have no
    CPU, which a worker then shares. Workers of one rank are in one group, and on one node.

    Raises:
        Refused: There are too few, or something else is to say where ranks run.
    """
    topology = config.topology
    if topology.kind is not TopologyKind.auto or topology.dp_local is not None:
        raise Refused(
            "the placement groups that were given say where ranks run, topology must be auto:"
            f" {topology.kind.name}",
            "topology=auto",
        )
    nodes = {node.id: node for node in cluster.nodes}
    wanted = {"GPU": need.gpus_per_worker} if need.gpus_per_worker else need.bundle
    places: list[GivenPlace] = []
    for group in given:
        fit = [
            index
            for index, bundle in enumerate(group.bundles)
            if all(bundle.resources.get(name, 0) >= number for name, number in wanted.items())
        ]
        while len(fit) >= need.tp and len(places) < config.dp:
            chosen, fit = tuple(fit[: need.tp]), fit[need.tp :]
            home = tuple(nodes[group.bundles[index].node] for index in chosen)
            if len({node.id for node in home}) == 1:
                places.append(GivenPlace(home, group.name, chosen))
    if len(places) < config.dp:
        bundles = counted(sum(len(group.bundles) for group in given), "bundle")
        has = f"{counted(len(given), 'placement group')} with {bundles}"
        raise Refused(
            f"dp={config.dp} tp={config.tp} does not fit into {has}: room for"
            f" {counted(len(places), 'rank')}; a worker takes {in_words(wanted)}",
            f"dp={len(places)}" if places else "larger placement groups",
        )
    return tuple(places)
