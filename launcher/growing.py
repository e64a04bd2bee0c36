"""Waits for a cluster that can grow, and plans again when it has."""

import sys
import time
from collections.abc import Callable

from launcher.cluster import Cluster
from launcher.config import LaunchConfig, RayOptions
from launcher.errors import StartFailed
from launcher.executors.ray.growth import grow
from launcher.executors.ray.session import Session
from launcher.plan import DeploymentPlan
from launcher.resolve import find_cluster
from launcher.shortage import MustGrow

_SETTLE_S = 5.0
_INTERVAL_S = 0.25


def plan_when_grown(
    config: LaunchConfig,
    shortage: MustGrow,
    session: Session,
    plan: Callable[[Cluster], DeploymentPlan],
) -> DeploymentPlan:
    """Asks for what lacks and plans again, until there is a plan.

    Args:
        shortage: What a plan has failed for.
        plan: Makes the plan for a cluster.

    Raises:
        Refused: There is no plan for what the cluster has become.
        StartFailed: It has not grown within `backend.grow_deadline_s`; what was missing.
    """
    assert isinstance(config.backend, RayOptions)
    limit_s = config.backend.grow_deadline_s
    deadline = time.monotonic() + limit_s
    _say(str(shortage))
    while time.monotonic() < deadline:
        grow(session, shortage.pending, deadline, _say)
        # What a new node has free is told some time after the node.
        settled = min(deadline, time.monotonic() + _SETTLE_S)
        while time.monotonic() < settled:
            try:
                return plan(find_cluster(config, session))
            except MustGrow as still:
                shortage = still
                time.sleep(_INTERVAL_S)
    raise StartFailed(
        f"the cluster has not grown within {limit_s:g} s (backend.grow_deadline_s)\n{shortage}",
        ", or ".join(filter(None, (f"backend.grow_deadline_s={2 * limit_s:g}", shortage.hint))),
    )


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
