"""The running plan: start, ready, watch, drain, stop. The same for every backend."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

import msgspec

from engine.config import Role
from engine.link import CoordinatorLink
from engine.protocol import (
    ENCODER,
    ApplyPlan,
    BeginDrain,
    DeploymentState,
    Member,
    Membership,
    Phase,
    ProcessExited,
    ProcessState,
)
from launcher.errors import DeploymentFailed, LauncherError, StartFailed
from launcher.executors.base import Executor, Exit
from launcher.plan import DeploymentPlan

_TAIL_LINES = 20
_FORCED_STOP_S = 0.0


class Deployment:
    """One plan in the hands of one executor. `stop` may be called at any time.

    Args:
        tell: Called with (process, what it does now) at every phase and state that a process
            enters.
    """

    def __init__(
        self, plan: DeploymentPlan, executor: Executor, tell: Callable[[str, str], None]
    ) -> None:
        self._plan, self._executor, self._tell = plan, executor, tell
        self._membership: Membership | None = None
        self._changed = asyncio.Event()
        self._link: CoordinatorLink | None = None
        self._told: dict[str, str] = {}
        self._failed = False
        self._has_coordinator = True

    @property
    def failed(self) -> bool:
        """Whether a process ended, or start or drain went wrong: the logs are worth keeping."""
        return self._failed

    async def start(self, deadline_s: float) -> None:
        """Starts every process and waits until all are ready.

        Raises:
            StartFailed: A process ended, is not what was planned, or the deadline passed.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._executor.start()
                self._connect()
                await self._unless_exit(self._all_ready(), StartFailed)
        except TimeoutError:
            self._failed = True
            raise StartFailed(
                f"not ready after {deadline_s:g} s (backend.start_deadline_s): {self._unready()}",
                f"backend.start_deadline_s={2 * deadline_s:g}, or see {self._log_hint()}",
            ) from None
        except LauncherError:
            self._failed = True
            raise

    async def watch(self) -> None:
        """Returns never.

        Raises:
            DeploymentFailed: A process ended.
        """
        ended = await self._executor.next_exit()
        self._failed = True
        raise DeploymentFailed(*self._explain(ended))

    async def drain(self, limit_s: float) -> int:
        """Takes no new requests, and waits until those in flight are done or the limit passed.

        Returns:
            How many were still in flight.

        Raises:
            DeploymentFailed: A process ended meanwhile, or the coordinator is gone.
        """
        if self._link is None or not self._has_coordinator:
            raise DeploymentFailed("requests in flight are cut off: there is no coordinator")
        self._link.send(BeginDrain())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._unless_exit(self._all_drained(), DeploymentFailed)
        late = [m for m in self._members(Role.frontend) if m.state is not ProcessState.drained]
        return sum(max(1, member.num_requests) for member in late)  # the count may be a beat old

    async def stop(self) -> None:
        """Ends every process."""
        if self._link is not None:
            self._link.close()
            self._link = None
        await self._executor.stop(self._plan.settings.health.stop_s)

    async def kill(self) -> None:
        """Ends every process at once."""
        if self._link is not None:
            self._link.close()
            self._link = None
        await self._executor.stop(_FORCED_STOP_S)

    def _connect(self) -> None:
        loop = asyncio.get_running_loop()

        def on_membership(membership: Membership) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._take, membership)

        hello = ApplyPlan(list(self._plan.processes), msgspec.Raw(ENCODER.encode(self._plan)))
        heartbeat_s = self._plan.settings.health.heartbeat_s
        self._link = CoordinatorLink(
            self._executor.coordinator_endpoint, hello, heartbeat_s, on_membership
        )
        self._link.start()

    def _take(self, membership: Membership) -> None:
        self._membership = membership
        for member in membership.members:
            news = _news(member)
            if self._told.get(member.name) != news:
                self._told[member.name] = news
                self._tell(member.name, news)
        self._changed.set()

    async def _all_ready(self) -> None:
        while True:
            await self._next_change()
            membership = self._membership
            assert membership is not None
            if membership.drift:
                raise StartFailed("not what was planned: " + "; ".join(membership.drift))
            ready = {m.name for m in membership.members if m.state is ProcessState.ready}
            if ready >= {process.name for process in self._plan.processes}:
                return

    async def _all_drained(self) -> None:
        while True:
            membership = self._membership
            assert membership is not None
            frontends = self._members(Role.frontend)
            if membership.state is DeploymentState.draining and all(
                member.state in (ProcessState.drained, ProcessState.lost) for member in frontends
            ):
                return
            await self._next_change()

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def _unless_exit(
        self, wait: Coroutine[None, None, None], failure: type[LauncherError]
    ) -> None:
        """Waits; raises the failure if a process ends before."""
        waiting = asyncio.ensure_future(wait)
        ended = asyncio.ensure_future(self._executor.next_exit())
        try:
            await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            self._failed = True
            raise failure(*self._explain(ended.result()))
        finally:
            waiting.cancel()
            ended.cancel()

    def _explain(self, ended: Exit) -> tuple[str, str]:
        """What happened to a process, with its last words; tells the coordinator too."""
        if ended.name == Role.coordinator.value:
            self._has_coordinator = False
        elif self._link is not None:
            self._link.send(ProcessExited(ended.name, ended.incarnation, ended.reason))
        lines = self._executor.log_tail(ended.name, _TAIL_LINES)
        tail = "".join(f"\n    {line}" for line in lines)
        return f"{ended.name} ended: {ended.reason}{tail}", f"see {self._log_hint()}"

    def _log_hint(self) -> str:
        return self._executor.log_path("*")

    def _unready(self) -> str:
        """Who is not ready, and what they do."""
        found = {member.name: member for member in self._members()}
        late = []
        for process in self._plan.processes:
            member = found.get(process.name)
            if member is None:
                late.append(f"{process.name} has not registered")
            elif member.state is not ProcessState.ready:
                late.append(f"{process.name} is {_news(member)}")
        return ", ".join(late)

    def _members(self, role: Role | None = None) -> list[Member]:
        members = self._membership.members if self._membership is not None else []
        return [member for member in members if role is None or member.role is role]


def _news(member: Member) -> str:
    if member.state is ProcessState.starting:
        return member.phase.value
    if member.state is ProcessState.ready:
        return Phase.ready.value
    return f"{member.state.value}: {member.reason}" if member.reason else member.state.value
