"""Placement groups: all of a deployment's ranks, or none. Runs in Ray's thread."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import Refused, StartFailed
from launcher.executors.ray.session import RayNode
from launcher.plan import Bundle, PendingResources, PlacementGroup

_SLICE_S = 0.2
"""How long Ray is waited for before looking whether somebody wants to end."""
_REMOVE_S = 10.0
_NODE_ID = "ray.io/node-id"


@dataclass(slots=True)
class Groups:
    """The placement groups of one deployment, by the plan's names.

    Args:
        prefix: Begins their names in Ray, which have to be unique in the cluster.
        given: Groups of somebody else's, which stand and are never removed.
    """

    prefix: str
    given: Mapping[str, Any] = field(default_factory=dict)
    is_ending: bool = False
    """Set by whoever wants to end: what waits gives up."""
    _made: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.given[name] if name in self.given else self._made[name]

    def make(
        self, groups: Sequence[PlacementGroup], nodes: Mapping[str, RayNode], deadline_s: float
    ) -> None:
        """Makes all groups, each bundle on its node, and waits until they stand.

        Raises:
            StartFailed: Some do not within the deadline; what they wait for is told.
        """
        from ray.util.placement_group import placement_group

        for group in groups:
            if self.is_ending:
                return
            if group.name in self.given:
                continue
            self._made[group.name] = placement_group(
                [dict(bundle.resources) for bundle in group.bundles],
                strategy=group.strategy,
                name=f"{self.prefix}-{group.name}",
                bundle_label_selector=[
                    {_NODE_ID: nodes[bundle.node].id} for bundle in group.bundles
                ],
            )
        late = self._wait(deadline_s)
        if late and not self.is_ending:
            waiting = [group for group in groups if group.name in late]
            raise StartFailed(
                f"placement groups do not stand after {deadline_s:g} s"
                f" (backend.group_deadline_s): {_describe(waiting, nodes)}",
                "other work may have taken the place meanwhile: start again to plan again",
            )

    def request(self, pending: PendingResources, head_id: str) -> None:
        """Makes groups that the cluster has no room for yet: its autoscaler sees them wait."""
        from ray.util.placement_group import placement_group

        beside = {_NODE_ID: f"!{head_id}"} if pending.beside_head else {}
        for index in range(pending.num_ranks):
            self._made[f"pending-{index}"] = placement_group(
                [dict(bundle) for bundle in pending.bundles],
                strategy=pending.strategy,
                name=f"{self.prefix}-pending-{index}",
                bundle_label_selector=[beside] * len(pending.bundles) if beside else None,
            )

    def num_standing(self) -> int:
        """How many stand."""
        table = _states()
        return sum(table.get(group.id.hex()) == "CREATED" for group in self._made.values())

    def remove(self, until_free: bool = False) -> list[str]:
        """Removes all groups and the actors in them; names of those still there after a while.

        Args:
            until_free: Wait until what they held is told to be free, which is some time later.
        """
        if not self._made:  # asked about groups, Ray would connect to some cluster by itself
            return []
        from ray.util.placement_group import remove_placement_group

        for group in self._made.values():
            remove_placement_group(group)
        deadline = time.monotonic() + _REMOVE_S
        left = self._left()
        while (left or until_free and self._held()) and time.monotonic() < deadline:
            time.sleep(_SLICE_S / 10)
            left = self._left()
        self._made = {name: self._made[name] for name in left}
        return left

    def _left(self) -> list[str]:
        table = _states()
        return [
            name
            for name, group in self._made.items()
            if table.get(group.id.hex(), "REMOVED") != "REMOVED"
        ]

    def _held(self) -> bool:
        """Whether a node is still said to have less because of these groups."""
        names = "\n".join(name for free in _available().values() for name in free)
        return any(group.id.hex() in names for group in self._made.values())

    def _wait(self, deadline_s: float) -> set[str]:
        """Names of the groups that do not stand in time."""
        deadline = time.monotonic() + deadline_s
        for group in self._made.values():
            while not self.is_ending and time.monotonic() < deadline and not group.wait(_SLICE_S):
                pass
        states = _states()
        return {n for n, group in self._made.items() if states.get(group.id.hex()) != "CREATED"}


def wait_for_given(given: Sequence[Any], deadline_s: float) -> None:
    """Waits until placement groups stand that somebody else has made. Runs in Ray's thread.

    Raises:
        Refused: One does not.
    """
    from ray.util.placement_group import placement_group_table

    deadline = time.monotonic() + deadline_s
    for handle in given:
        handle.wait(max(0.0, deadline - time.monotonic()))
        state = placement_group_table(handle)["state"]
        if state != "CREATED":
            raise Refused(
                f"placement group {handle.id.hex()} does not stand after {deadline_s:g} s, it is"
                f" {state}",
                "placement groups that Ray has created, see ray.util.placement_group_table()",
            )


def describe_given(given: Sequence[Any], names: Mapping[str, str]) -> dict[str, PlacementGroup]:
    """What is in placement groups that stand. Runs in Ray's thread.

    Args:
        given: Ray's handles.
        names: What a plan calls the nodes, by Ray's ids.

    Returns:
        In the same order, by the names that a plan calls them: `given-0`, ...

    Raises:
        Refused: One has lost a node.
    """
    from ray.util.placement_group import placement_group_table

    found = {}
    for index, handle in enumerate(given):
        table = placement_group_table(handle)
        nodes = table["bundles_to_node_id"]
        if not all(node in names for node in nodes.values()):
            raise Refused(
                f"placement group {handle.id.hex()} has lost a node, it is {table['state']}",
                "placement groups that stand",
            )
        bundles = (
            Bundle(
                resources={name: int(number) for name, number in resources.items()},
                node=names[nodes[position]],
            )
            for position, resources in sorted(table["bundles"].items())
        )
        name = f"given-{index}"
        found[name] = PlacementGroup(name=name, strategy=table["strategy"], bundles=tuple(bundles))
    return found


def _describe(groups: Sequence[PlacementGroup], nodes: Mapping[str, RayNode]) -> str:
    """Which group waits for what, and what its node has free now."""
    available = _available()
    lines = []
    for group in groups:
        for bundle in group.bundles:
            free = available.get(nodes[bundle.node].id)
            has = "which is gone" if free is None else _free(free, bundle.resources)
            wants = ", ".join(f"{number} {name}" for name, number in bundle.resources.items())
            lines.append(f"\n    {group.name} waits for {wants} on {bundle.node}, {has}")
    return "".join(lines)


def _free(free: Mapping[str, float], wanted: Mapping[str, int]) -> str:
    return "which has free: " + ", ".join(f"{free.get(name, 0):g} {name}" for name in wanted)


def _available() -> dict[str, dict[str, float]]:
    """What every node has free, by Ray's ids, as last told."""
    import ray

    untyped: Any = ray
    available: dict[str, dict[str, float]]
    available = untyped._private.state.available_resources_per_node()
    return available


def _states() -> dict[str, str]:
    from ray.util.placement_group import placement_group_table

    return {id: group["state"] for id, group in placement_group_table().items()}
