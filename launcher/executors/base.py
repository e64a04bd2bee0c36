"""What an executor is: it carries a plan out, and knows nothing of how the plan came to be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engine.access import Access
from engine.transport import Keys

if TYPE_CHECKING:
    from launcher.executors.ray.session import Session

Tell = Callable[[str, str], None]
"""Called with (process, or what else it is about; what it does now)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What carrying a plan out takes that is no part of the plan."""

    start_deadline_s: float
    """Until every process must be ready."""
    group_deadline_s: float = 60.0
    """Until every placement group must stand."""
    session: "Session | None" = None
    """Connected to the Ray cluster that the plan is for; None: there is none yet."""
    access: Access = Access()
    """Who may use the front ends."""
    given_groups: Mapping[str, Any] = field(default_factory=dict)
    """Ray's placement groups that stand already, by their names in the plan: left alone."""


@dataclass(frozen=True, slots=True)
class Exit:
    """A process ended."""

    name: str
    incarnation: int
    reason: str
    """`exit code 1`, `killed by SIGKILL`."""


class Executor(Protocol):
    """Starts and ends the processes of one plan. `stop` may be called at any time, and twice."""

    @property
    def coordinator_endpoint(self) -> str:
        """Where the launcher finds the coordinator."""
        ...

    @property
    def keys(self) -> Keys | None:
        """With which the coordinator is spoken to, if it may be from other machines."""
        ...

    @property
    def addresses(self) -> list[str]:
        """`http://` addresses of the front ends."""
        ...

    @property
    def private_addresses(self) -> list[str]:
        """Paths of the front ends' unix sockets, which only this user can reach."""
        ...

    def reserve(self) -> None:
        """Takes what must be free: name, ports.

        Raises:
            Refused: Somebody else has it. Nothing was started.
        """
        ...

    @property
    def left_behind(self) -> list[str]:
        """What `stop` could not end."""
        ...

    async def start(self) -> None:
        """Starts every process; they say themselves when they are ready.

        Raises:
            StartFailed: A process could not be started at all.
        """
        ...

    async def next_exit(self) -> Exit:
        """Waits until a process ends."""
        ...

    async def kill(self, name: str) -> None:
        """Ends a process that hangs, at once; `next_exit` tells when it is gone.

        Without effect on one that has ended.
        """
        ...

    def alive(self) -> list[str]:
        """Names of the processes that have not ended."""
        ...

    async def restart(self, name: str) -> int:
        """Starts a process that has ended again: the same place, the same listening sockets.

        Returns:
            Its new incarnation, one more than before.

        Raises:
            StartFailed: It could not be started at all.
        """
        ...

    async def collect_log(self, name: str) -> None:
        """Fetches the last lines of a process that has ended, if they are on another machine."""
        ...

    def log_tail(self, name: str, num_lines: int) -> list[str]:
        """The last lines that a process logged."""
        ...

    def log_path(self, name: str) -> str:
        """Where its log is."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Asks every process to end, kills those still there after `grace_s`, waits for all."""
        ...

    def release(self, keep_logs: bool) -> None:
        """Gives back what `reserve` took."""
        ...
