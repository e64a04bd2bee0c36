"""What can be planned but not carried out yet. It goes when the Ray executor comes."""

import os
from collections.abc import Iterator, Mapping

from launcher.config import (
    Action,
    AutoClusterOptions,
    ExistingClusterOptions,
    LaunchConfig,
    RayOptions,
    TopologyKind,
)
from launcher.config_errors import Problem


def not_yet(config: LaunchConfig, environment: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """What a config wants that only an executor for Ray could do."""
    backend, cluster = config.backend, config.cluster
    wants_ray = (
        isinstance(backend, RayOptions) or config.topology.kind is not TopologyKind.head_only
    )
    if not wants_ray:
        return
    if config.action is not Action.plan:
        message = "backend=ray can only be planned yet"
        yield Problem(f"{message}: action={config.action.name}", "action=plan")
    emulated = "cluster=emulated"
    if isinstance(cluster, ExistingClusterOptions):
        yield Problem("cluster=existing cannot be looked at yet", emulated)
    elif isinstance(cluster, AutoClusterOptions):
        address = getattr(backend, "address", None) or environment.get("RAY_ADDRESS")
        if address:
            yield Problem(f"a running Ray cluster cannot be looked at yet: {address}", emulated)
