"""The running plan: start, ready, watch, drain, stop. The same for every backend."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from engine.config import Role
from engine.link import CoordinatorLink
from engine.protocol import (
    ENCODER,
    ApplyPlan,
    DeploymentState,
    Loads,
    Member,
    Membership,
    ProcessExited,
    ProcessState,
)
from launcher.errors import DeploymentFailed, LauncherError, StartFailed
from launcher.executors.base import Executor, Exit
from launcher.plan import DeploymentPlan
from launcher.restarts import Restarts

_TAIL_LINES = 20
_FORCED_STOP_S = 0.0


class Deployment:
    """One plan in the hands of one executor. `stop` may be called at any time.

    Args:
        tell: Called with (process, what it does now) at every phase and state that it enters.

    Attributes:
        failure: The first thing that went wrong: a process that ended, a start that failed.
        loads: Of the ranks, as last told.
    """

    def __init__(
        self, plan: DeploymentPlan, executor: Executor, tell: Callable[[str, str], None]
    ) -> None:
        self._plan, self._executor, self._tell = plan, executor, tell
        self._membership: Membership | None = None
        self._heard_s = time.monotonic()
        self.loads: Loads | None = None
        self._changed = asyncio.Event()
        self._link: CoordinatorLink | None = None
        self._told: dict[str, str] = {}
        self.failure: LauncherError | None = None
        self._has_coordinator = True
        self._hello = ApplyPlan(
            list(plan.processes),
            msgspec.Raw(ENCODER.encode(plan)),
            incarnations={process.name: 1 for process in plan.processes},
        )
        self._roles = {process.name: process.role for process in plan.processes}
        self._restarts = Restarts(plan.settings.restart)
        self._restarting: asyncio.Task[None] | None = None

    @property
    def heard(self) -> tuple[Membership | None, float]:
        """The coordinator's last word, and when it came (monotonic clock)."""
        return self._membership, self._heard_s

    @property
    def incarnations(self) -> dict[str, int]:
        """How many times each process has been started."""
        return self._hello.incarnations

    @property
    def num_requests(self) -> int:
        """Requests in flight at the front ends that live, as of their last heartbeats."""
        alive = (ProcessState.ready, ProcessState.suspect)
        front_ends = self._members(Role.frontend)
        return sum(member.num_requests for member in front_ends if member.state in alive)

    async def start(self, deadline_s: float) -> None:
        """Starts every process and waits until all are ready.

        Raises:
            StartFailed: A process ended, is not what was planned, or the deadline passed.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._executor.start()
                self._connect()
                ended = await self._exit_before(self._all_ready())
        except TimeoutError:
            late = self._unready()
            said = "; ".join(f"{name} {what}" for name, what in late.items())
            self.failure = StartFailed(
                f"not ready after {deadline_s:g} s (backend.start_deadline_s): {said}"
                + self._last_words(next(iter(late))),
                f"backend.start_deadline_s={2 * deadline_s:g}, or see {self._log_hint()}",
            )
            raise self.failure from None
        except LauncherError as problem:
            self.failure = problem
            raise
        if ended is not None:
            raise self._note_exit(ended, StartFailed)

    async def watch(self) -> None:
        """Starts front ends and the coordinator again when they end. Returns never.

        Raises:
            DeploymentFailed: An engine core ended, or another process too often.
        """
        while True:
            ended = await self._executor.next_exit()
            if self._roles[ended.name] is Role.engine or not await self._restart(ended):
                raise self._note_exit(ended, DeploymentFailed)

    async def drain(self, limit_s: float) -> int:
        """Takes no new requests, and waits until those in flight are done or the limit passed.

        The coordinator is started again if it ends meanwhile. Another process that does is noted in
        `failure`; what the others do may still finish.

        Returns:
            How many requests were still in flight.

        Raises:
            DeploymentFailed: The coordinator is gone, without which nothing can be drained.
        """
        if self._restarting is not None:
            await self._restarting
        self._tell_coordinator(state=DeploymentState.draining)
        limit_s = max(limit_s, 2 * self._plan.settings.health.heartbeat_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._is_drained():
                    if not self._has_coordinator:
                        raise DeploymentFailed("requests cut off: there is no coordinator")
                    ended = await self._exit_before(self._next_change())
                    if ended is None:
                        continue
                    is_coordinator = self._roles[ended.name] is Role.coordinator
                    if not is_coordinator or not await self._restart(ended):
                        self._note_exit(ended, DeploymentFailed)
        late = [m for m in self._members(Role.frontend) if m.state is ProcessState.ready]
        return sum(member.num_requests for member in late)

    async def stop(self) -> None:
        """Ends every process."""
        await self._stop(self._plan.settings.health.stop_s)

    async def kill(self) -> None:
        """Ends every process at once."""
        await self._stop(_FORCED_STOP_S)

    async def _stop(self, grace_s: float) -> None:
        if self._restarting is not None:
            with contextlib.suppress(LauncherError):
                await self._restarting
        if self._link is not None:
            self._link.close()
            self._link = None
        await self._executor.stop(grace_s)

    def _connect(self) -> None:
        loop = asyncio.get_running_loop()

        def on_membership(membership: Membership) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._take, membership)

        def on_loads(loads: Loads) -> None:
            self.loads = loads

        self._link = CoordinatorLink(
            self._executor.coordinator_endpoint,
            self._hello,
            self._plan.settings.health.heartbeat_s,
            on_membership,
            on_loads=on_loads,
            keys=self._executor.keys,
        )
        self._link.start()

    def _take(self, membership: Membership) -> None:
        self._membership, self._heard_s = membership, time.monotonic()
        for member in membership.members:
            news, before = _news(member), self._told.get(member.name, "")
            was_suspect = before.startswith(ProcessState.suspect.value)
            is_still = was_suspect and member.state is ProcessState.suspect  # its reason grows
            if news == before or is_still:
                continue
            self._told[member.name] = news
            is_ready = member.state is ProcessState.ready
            self._tell(member.name, "ready again" if was_suspect and is_ready else news)
        self._changed.set()

    async def _restart(self, ended: Exit) -> bool:
        """Starts a process again that has ended. False: it has ended too often."""
        options, name = self._plan.settings.restart, ended.name
        if not self._restarts.allow(name, time.monotonic()):
            return False
        number = f"{self._restarts.recent(name)} of {options.limit} in {options.window_s:g} s"
        self._tell(name, f"ended: {ended.reason}; starting it again ({number})")
        if self._link is not None and self._roles[name] is not Role.coordinator:
            self._link.send(ProcessExited(name, ended.incarnation, ended.reason))
        # To the end, whoever does not want to wait for it any more: no process may be half started.
        self._restarting = asyncio.create_task(self._start_again(name))
        await asyncio.shield(self._restarting)
        return True

    async def _start_again(self, name: str) -> None:
        try:
            incarnation = await self._executor.restart(name)
        except LauncherError as problem:
            self.failure = self.failure or problem
            raise
        self._tell_coordinator(incarnations=self._hello.incarnations | {name: incarnation})

    def _tell_coordinator(self, **changes: Any) -> None:
        """Changes what this, and any later, coordinator is told."""
        self._hello = msgspec.structs.replace(self._hello, **changes)
        if self._link is not None:
            self._link.change_hello(self._hello)

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

    def _is_drained(self) -> bool:
        membership = self._membership
        return (
            membership is not None
            and membership.state is DeploymentState.draining
            and all(
                member.state in (ProcessState.drained, ProcessState.lost)
                for member in self._members(Role.frontend)
            )
        )

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def _exit_before(self, wait: Coroutine[None, None, None]) -> Exit | None:
        """Waits; the process that ended before, if one did."""
        waiting = asyncio.ensure_future(wait)
        ending = asyncio.ensure_future(self._executor.next_exit())
        try:
            await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():  # first, since nobody else will hear of it
                return ending.result()
            waiting.result()
            return None
        finally:
            waiting.cancel()
            ending.cancel()

    def _note_exit(self, ended: Exit, error: type[LauncherError]) -> LauncherError:
        """What happened to a process, with its last words; tells the coordinator too."""
        if ended.name == Role.coordinator.value:
            self._has_coordinator = False
        elif self._link is not None:
            self._link.send(ProcessExited(ended.name, ended.incarnation, ended.reason))
        times = self._restarts.recent(ended.name) + 1
        options = self._plan.settings.restart
        often = f", {times} times in {options.window_s:g} s" if times > 1 else ""
        message = f"{ended.name} ended: {ended.reason}{often}{self._last_words(ended.name)}"
        problem = error(message, f"see {self._log_hint()}")
        self.failure = self.failure or problem
        return problem

    def _last_words(self, name: str) -> str:
        lines = self._executor.log_tail(name, _TAIL_LINES)
        return "".join(f"\n    {line}" for line in lines)

    def _log_hint(self) -> str:
        return self._executor.log_path("*")

    def _unready(self) -> dict[str, str]:
        """Who is not ready, and what they do."""
        found = {member.name: member for member in self._members()}
        late = {}
        for process in self._plan.processes:
            member = found.get(process.name)
            if member is None:
                late[process.name] = "has not registered"
            elif member.state is not ProcessState.ready:
                late[process.name] = f"is {_news(member)}"
        return late

    def _members(self, role: Role | None = None) -> list[Member]:
        members = self._membership.members if self._membership is not None else []
        return [member for member in members if role is None or member.role is role]


def _news(member: Member) -> str:
    if member.state in (ProcessState.starting, ProcessState.ready):
        again = f"start {member.incarnation}" if member.incarnation > 1 else ""
        remarks = "; ".join(filter(None, (again, member.remark)))
        return f"{member.phase.value} ({remarks})" if remarks else member.phase.value
    return f"{member.state.value}: {member.reason}" if member.reason else member.state.value
