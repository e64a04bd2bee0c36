"""From a valid config to a plan and what carrying it out takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from engine.access import Access
from launcher.api_keys import read_access
from launcher.cluster import Cluster
from launcher.config import Action, LaunchConfig, RayOptions
from launcher.errors import Refused
from launcher.executors.base import Means
from launcher.plan import DeploymentPlan, PlacementGroup
from launcher.planner import make_plan
from launcher.resolve import Resolved, find_cluster, resolve
from launcher.shortage import MustGrow


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what carrying it out takes besides."""

    plan: DeploymentPlan
    means: Means


@contextmanager
def planned(config: LaunchConfig, placement_groups: Sequence[Any] = ()) -> Iterator[Planned]:
    """The plan of a valid config, with the connection to its cluster open meanwhile.

    A cluster that can grow is asked for what lacks, unless the plan is only to be shown.

    Args:
        placement_groups: Ray's handles of groups that stand already, for the ranks.

    Raises:
        Refused: The model or the cluster is not there, or it cannot be placed.
        StartFailed: The cluster did not grow in time.
    """
    found = resolve(config)
    try:
        cluster, groups = _given(config, found, placement_groups)
        found = replace(found, cluster=cluster)
        plan = _plan(config, found, groups)
        handles = dict(zip(groups, placement_groups, strict=True))
        yield Planned(plan, _means(config, found, handles))
    finally:
        if found.session is not None:
            found.session.close()


def _plan(
    config: LaunchConfig, found: Resolved, groups: dict[str, PlacementGroup]
) -> DeploymentPlan:
    def plan(cluster: Cluster) -> DeploymentPlan:
        return make_plan(
            replace(config, model=found.model),
            found.facts,
            cluster,
            model_name=found.model_name,
            passed_environment=found.passed_environment,
            given=tuple(groups.values()),
        )

    try:
        return plan(found.cluster)
    except MustGrow as shortage:
        if config.action is Action.plan or found.session is None:
            raise
        from launcher.growing import plan_when_grown

        return plan_when_grown(config, shortage, found.session, plan)


def _means(config: LaunchConfig, found: Resolved, handles: dict[str, Any]) -> Means:
    access = Access() if config.action is Action.plan else read_access(config.frontend)
    means = Means(
        access=access,
        start_deadline_s=config.backend.start_deadline_s,
        session=found.session,
        given_groups=handles,
    )
    if isinstance(config.backend, RayOptions):
        means = replace(means, group_deadline_s=config.backend.group_deadline_s)
    return means


def _given(
    config: LaunchConfig, found: Resolved, handles: Sequence[Any]
) -> tuple[Cluster, dict[str, PlacementGroup]]:
    """The cluster, and what is in the placement groups that were given, once they stand."""
    if not handles:
        return found.cluster, {}
    if found.session is None or not isinstance(config.backend, RayOptions):
        raise Refused(
            "placement groups need the Ray cluster that they are of:"
            f" backend={config.backend.choice}",
            "backend=ray topology=auto, in a process that is connected to the cluster",
        )
    from launcher.executors.ray.groups import describe_given, wait_for_given

    session, deadline_s = found.session, config.backend.group_deadline_s
    session.call(lambda: wait_for_given(handles, deadline_s), 2 * deadline_s)
    cluster = find_cluster(config, session)  # with nodes that have come for the groups
    names = {node.id: name for name, node in session.nodes.items()}
    return cluster, session.call(lambda: describe_given(handles, names))
