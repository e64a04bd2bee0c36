"""The running plan: start, ready, watch, drain, stop. The same for every backend."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec

from engine.config import Role
from engine.link import CoordinatorLink
from engine.protocol import (
    ENCODER,
    ApplyPlan,
    DeploymentState,
    Loads,
    Membership,
    ProcessExited,
)
from launcher.errors import DeploymentFailed, LauncherError, StartFailed
from launcher.executors.base import Executor, Exit
from launcher.hangs import Hangs
from launcher.last_words import last_words
from launcher.members import Members
from launcher.plan import DeploymentPlan
from launcher.restarts import Restarts
from launcher.waterfall import Waterfall

logger = logging.getLogger(__name__)

_TAIL_LINES = 1000
_FORCED_STOP_S = 0.0
_LOOK_S = 0.25
"""Seconds between two looks for processes that hang."""
_SILENT_STOP_S = 2.0
"""Seconds in which processes may end before the launcher says for whom it waits."""


class Deployment:
    """One plan in the hands of one executor. `stop` may be called at any time.

    Args:
        tell: Called with (process, what it does now) at every phase and state that it enters.

    Attributes:
        incarnations: How many times each process has been started.
        failure: The first thing that went wrong: a process that ended, a start that failed.
        loads: Of the ranks, as last told.
        waterfall: When each process entered which phase.
    """

    def __init__(
        self, plan: DeploymentPlan, executor: Executor, tell: Callable[[str, str], None]
    ) -> None:
        self._plan, self._executor, self._tell = plan, executor, tell
        self._members = Members(tell)
        self._heard_s = time.monotonic()
        self.waterfall = Waterfall(self._heard_s)
        self.loads: Loads | None = None
        self._changed = asyncio.Event()
        self._link: CoordinatorLink | None = None
        self.failure: LauncherError | None = None
        self._has_coordinator = True
        self.incarnations = {process.name: 1 for process in plan.processes}
        self._hello = ApplyPlan(
            list(plan.processes),
            msgspec.Raw(ENCODER.encode(plan)),
            incarnations=dict(self.incarnations),
        )
        self._roles = {process.name: process.role for process in plan.processes}
        self._restarts = Restarts(plan.settings.restart)
        self._restarting: asyncio.Task[None] | None = None
        self._hangs = Hangs(plan.settings.health)
        self._complaints: dict[str, str] = {}
        self._ending_hung: asyncio.Task[None] | None = None
        self._start_deadline_s = math.inf

    @property
    def heard(self) -> tuple[Membership | None, float]:
        """The coordinator's last word, and when it came (monotonic clock)."""
        return self._members.membership, self._heard_s

    @property
    def num_requests(self) -> int:
        """Requests in flight at the front ends that live, as of their last heartbeats."""
        return self._members.num_requests

    async def start(self, deadline_s: float) -> None:
        """Starts every process and waits until all are ready.

        Raises:
            StartFailed: A process ended, is not what was planned, or the deadline passed.
        """
        self._start_deadline_s = deadline_s
        for name, incarnation in self.incarnations.items():
            self._watch_for_hangs(name, incarnation)
        try:
            async with asyncio.timeout(deadline_s):
                await self._executor.start()
                self._connect()
                ended = await self._exit_before(self._all_ready())
        except TimeoutError:
            self.failure = self._late(deadline_s)
            raise self.failure from None
        except LauncherError as problem:
            self.failure = problem
            raise
        if ended is not None:
            raise await self._note_exit(ended, StartFailed)
        self._ending_hung = asyncio.create_task(self._end_hung())

    async def watch(self) -> None:
        """Starts front ends and the coordinator again when they end. Returns never.

        Raises:
            DeploymentFailed: An engine core ended, or another process too often.
        """
        while True:
            ended = await self._next_exit()
            if self._roles[ended.name] is Role.engine or not await self._restart(ended):
                raise await self._note_exit(ended, DeploymentFailed)

    async def drain(self, limit_s: float) -> int:
        """Takes no new requests, and waits until those in flight are done or the limit passed.

        The coordinator is started again if it ends meanwhile. Another process that does is noted in
        `failure`; what the others do may still finish.

        Returns:
            How many requests were still in flight.

        Raises:
            DeploymentFailed: The coordinator is gone, without which nothing can be drained.
        """
        await self._restarted()
        self._tell_coordinator(state=DeploymentState.draining)
        limit_s = max(limit_s, 2 * self._plan.settings.health.heartbeat_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._members.is_drained:
                    if not self._has_coordinator:
                        raise DeploymentFailed("requests cut off: there is no coordinator")
                    ended = await self._exit_before(self._next_change())
                    if ended is None:
                        continue
                    is_coordinator = self._roles[ended.name] is Role.coordinator
                    if not is_coordinator or not await self._restart(ended):
                        self._tell(ended.name, f"ended: {ended.reason}")
                        await self._note_exit(ended, DeploymentFailed)
        return self.num_requests

    async def stop(self) -> None:
        """Ends every process."""
        await self._stop(self._plan.settings.health.stop_s)

    async def kill(self) -> None:
        """Ends every process at once."""
        await self._stop(_FORCED_STOP_S)

    async def kill_late(self) -> None:
        """Ends at once the processes for which `stop` waits."""
        for name in self._executor.alive():
            await self._executor.kill(name)

    async def _stop(self, grace_s: float) -> None:
        if self._ending_hung is not None:
            self._ending_hung.cancel()
        await self._restarted()
        if self._link is not None:
            self._link.close()
            self._link = None
        telling = asyncio.create_task(self._tell_who_is_late(grace_s))
        try:
            await self._executor.stop(grace_s)
        finally:
            telling.cancel()

    async def _tell_who_is_late(self, grace_s: float) -> None:
        await asyncio.sleep(_SILENT_STOP_S)
        if grace_s > _SILENT_STOP_S:
            for name in self._executor.alive():
                self._tell(name, f"has not ended: waiting, at most {grace_s:g} s (health.stop_s)")

    async def _restarted(self) -> None:
        """Waits until no process is half started; one that could not be is in `failure`."""
        if self._restarting is not None:
            await asyncio.wait([self._restarting], timeout=self._plan.settings.health.stop_s)

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
        self._heard_s = time.monotonic()
        self._hangs.take(membership)
        self._members.take(membership)
        self.waterfall.take(membership.members, self._heard_s)
        self._changed.set()

    async def _restart(self, ended: Exit) -> bool:
        """Starts a process again that has ended. False: it has ended too often."""
        options, name, now = self._plan.settings.restart, ended.name, time.monotonic()
        self._hangs.ended(name)
        if not self._restarts.allow(name, now):
            return False
        number = f"{self._restarts.recent(name, now)} of {options.limit} in {options.window_s:g} s"
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
            if self._roles[name] is Role.coordinator:
                self._has_coordinator = False
            raise
        self._watch_for_hangs(name, incarnation)
        self.incarnations[name] = incarnation
        self._tell_coordinator(incarnations=self._hello.incarnations | {name: incarnation})

    def _watch_for_hangs(self, name: str, incarnation: int) -> None:
        if self._roles[name] is not Role.engine:  # these alone can be started again
            self._hangs.started(name, incarnation, self._start_deadline_s)

    async def _end_hung(self) -> None:
        """Kills what hangs; that it has ended is then heard as of any other process."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for name, complaint in self._hangs.look(time.monotonic()):
                self._tell(name, f"hangs: {complaint}; killing it")
                self._complaints[name] = complaint
                try:
                    await self._executor.kill(name)
                except Exception:  # a defect; the others are looked after all the same
                    logger.exception("%s could not be killed", name)

    def _tell_coordinator(self, **changes: Any) -> None:
        """Changes what this, and any later, coordinator is told."""
        self._hello = msgspec.structs.replace(self._hello, **changes)
        if self._link is not None:
            self._link.change_hello(self._hello)

    async def _all_ready(self) -> None:
        while True:
            await self._next_change()
            if self._members.drift:
                raise StartFailed("not what was planned: " + "; ".join(self._members.drift))
            if not self._members.unready(self._roles):
                return

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def _next_exit(self) -> Exit:
        ended = await self._executor.next_exit()
        complaint = self._complaints.pop(ended.name, "")
        return replace(ended, reason=f"killed by the launcher: {complaint}") if complaint else ended

    async def _exit_before(self, wait: Coroutine[None, None, None]) -> Exit | None:
        """Waits; the process that ended before, if one did."""
        waiting = asyncio.ensure_future(wait)
        ending = asyncio.ensure_future(self._next_exit())
        try:
            await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():  # first, since nobody else will hear of it
                return ending.result()
            waiting.result()
            return None
        finally:
            waiting.cancel()
            ending.cancel()

    async def _note_exit(self, ended: Exit, error: type[LauncherError]) -> LauncherError:
        """What happened to a process, with its last words; tells the coordinator too."""
        self._hangs.ended(ended.name)
        if ended.name == Role.coordinator.value:
            self._has_coordinator = False
        elif self._link is not None:
            self._link.send(ProcessExited(ended.name, ended.incarnation, ended.reason))
            # a coordinator that is started again would wait for it
            there = self._hello.incarnations.items()
            self._tell_coordinator(
                incarnations={name: number for name, number in there if name != ended.name}
            )
        await self._executor.collect_log(ended.name)  # its requests have failed by now
        times = self._restarts.recent(ended.name, time.monotonic()) + 1
        options = self._plan.settings.restart
        often = f", {times} times in {options.window_s:g} s" if times > 1 else ""
        message = (
            f"{ended.name} ended: {ended.reason}{often}{self._last_words(ended.name, ended.reason)}"
        )
        problem = error(message, f"see {self._log_hint()}")
        self.failure = self.failure or problem
        return problem

    def _late(self, deadline_s: float) -> StartFailed:
        """Why it is not ready after so long."""
        late = self._members.unready(self._roles)
        said = "; ".join(f"{name} {what}" for name, what in late.items())
        words = self._last_words(next(iter(late))) if late else ""
        return StartFailed(
            f"not ready after {deadline_s:g} s (backend.start_deadline_s): {said}{words}",
            f"backend.start_deadline_s={2 * deadline_s:g}, or see {self._log_hint()}",
        )

    def _last_words(self, name: str, reason: str = "") -> str:
        return last_words(self._executor.log_tail(name, _TAIL_LINES), reason)

    def _log_hint(self) -> str:
        return self._executor.log_path("*")
