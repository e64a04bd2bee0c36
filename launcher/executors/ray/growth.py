"""Asks a cluster that can grow for what a plan lacks, and waits until it is there."""

import secrets
import time
from collections.abc import Callable

from launcher.executors.ray.groups import Groups
from launcher.executors.ray.session import Session
from launcher.plan import PendingResources

_INTERVAL_S = 0.25
_REPEAT_S = 10.0
"""Between two lines that say that nothing has changed."""


def grow(
    session: Session, pending: PendingResources, deadline: float, say: Callable[[str], None]
) -> None:
    """Requests the resources as placement groups, and removes them when all stand.

    Args:
        deadline: On the clock of `time.monotonic`; it returns then at the latest.
    """
    groups = Groups(f"flotilla-request-{secrets.token_hex(4)}")
    try:
        session.call(lambda: groups.request(pending, session.head_id))
        said, said_s = -1, 0.0
        while (now := time.monotonic()) < deadline:
            standing = session.call(groups.num_standing)
            if standing != said or now - said_s > _REPEAT_S:
                said, said_s = standing, now
                left_s = deadline - now
                say(
                    f"the cluster has room for {standing} of {pending.num_ranks} ranks that wait"
                    f" for {_words(pending)} each; at most {left_s:.0f} s more"
                )
            if standing == pending.num_ranks:
                return
            time.sleep(_INTERVAL_S)
    finally:
        session.call(lambda: groups.remove(until_free=True))  # the next plan counts on it


def _words(pending: PendingResources) -> str:
    first = pending.bundles[0]
    words = " and ".join(f"{number} {name}" for name, number in first.items())
    return words if len(pending.bundles) == 1 else f"{len(pending.bundles)} times {words}"
