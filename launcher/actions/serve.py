"""`action=serve`: carries the plan out and stays until a signal or a failure ends it."""

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Awaitable, Callable

from engine.wording import counted
from launcher import BEGAN_S
from launcher.control import SOCKET_NAME, Stage
from launcher.control_server import Control
from launcher.deployment import Deployment
from launcher.end_signals import end_signals
from launcher.errors import Interrupted, LauncherError
from launcher.executors import make_executor
from launcher.executors.base import Executor, Means
from launcher.plan import DeploymentPlan
from launcher.run_directory import RunDirectory
from launcher.terminal import Terminal

Check = Callable[[Executor, Callable[[str], None]], None]
"""Looks at a deployment that is ready, in a thread, and tells what it has seen."""

ECHO_S = 0.2
"""The same signal again within this time is the same one. A signal to a process group reaches us,
and once more by a parent that passes it on: make does (GNU make 4.3, src/commands.c,
`fatal_error_signal`), as wrappers in containers do. That takes a parent milliseconds; a person has
to read first that a second one forces.
"""


def serve(plan: DeploymentPlan, means: Means) -> int:
    """Serves until Ctrl-C or SIGTERM, which drain; a second one forces.

    Returns:
        0: drained.

    Raises:
        LauncherError: It could not start, a process ended, or it was interrupted.
    """
    return asyncio.run(Serving(plan, means).run())


class Serving:
    """One deployment from start to drained.

    Args:
        check: What to do once all is ready, in place of staying; the deployment drains after it.
        stop_check: Called when a signal comes before the check is done, so that draining does not
            wait for what it still asks for.
        on_ready: Called with the address of the front ends when all is ready.
        takes_signals: This is a command's own work, and its time counts from when the command
            began. Else somebody calls `end`: only the main thread can have signals.

    Attributes:
        num_cut_off: Requests still in flight when draining ended; None: it has not been drained.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        means: Means,
        check: Check | None = None,
        *,
        stop_check: Callable[[], None] = lambda: None,
        on_ready: Callable[[str], None] = lambda address: None,
        takes_signals: bool = True,
    ) -> None:
        self._plan, self._means, self._check = plan, means, check
        self._stop_check, self._on_ready = stop_check, on_ready
        self._takes_signals = takes_signals
        self.num_cut_off: int | None = None
        self._executor = make_executor(plan, means, self._tell)
        self._terminal = Terminal()
        self._began_s = BEGAN_S if takes_signals else time.monotonic()
        self._planned_s = time.monotonic() - self._began_s
        self._deployment = Deployment(plan, self._executor, self._tell)
        self._signals = Signals()
        self._taken_signals: asyncio.Queue[int] = asyncio.Queue()
        self._is_told_to_end = False
        path = RunDirectory(plan.name).path / SOCKET_NAME
        self._control = Control(path, plan, self._deployment, self._executor, self.end)

    async def run(self) -> int:
        """Starts, stays, drains, ends.

        Returns:
            0: drained.

        Raises:
            LauncherError: It could not start, a process ended, or it was interrupted.
        """
        loop = asyncio.get_running_loop()
        for number in end_signals() if self._takes_signals else ():
            loop.add_signal_handler(number, self._take_signal, number)
        how = ""
        try:
            self._executor.reserve()
            async with self._control:
                how = "ended: failed"  # unless it is known better
                try:
                    await self._start(self._means.start_deadline_s)
                    await self._until_end()
                    how = "ended"
                except Interrupted:
                    how = "ended: interrupted"
                    raise
                finally:
                    self._control.stage = Stage.ending
                    await self._stop()
                    self._say(how)
        finally:
            has_failed = how == "ended: failed" or self._deployment.failure is not None
            self._executor.release(keep_logs=has_failed)
            self._terminal.close()
        return 0

    async def _start(self, deadline_s: float) -> None:
        number = await self._unless_signal(self._deployment.start(deadline_s))
        if number is not None:
            self._control.stage = Stage.ending
            await self._deployment.kill()
            raise Interrupted(number)
        self._control.stage = Stage.serving
        elapsed_s = time.monotonic() - self._began_s
        self._say(
            f"ready after {elapsed_s:.1f} s: {self._executor.addresses[0]}/v1  "
            f"model {self._plan.settings.model_name}{'  (Ctrl-C ends)' * self._takes_signals}"
        )
        if summary := self._deployment.waterfall.summary():
            planned = f"planned after {self._planned_s:.1f} s; " * self._takes_signals
            self._say(f"  {planned}{summary}")
        self._on_ready(self._executor.addresses[0])

    async def _until_end(self) -> None:
        failure: LauncherError | None = None
        try:
            number = await self._unless_signal(self._stay())
            if number is not None:
                self._stop_check()
                failure = Interrupted(number) if self._check is not None else None
        except LauncherError as problem:
            failure = problem
            self._say(f"{str(problem).splitlines()[0]}: ending", style="red")
        self._control.stage = Stage.draining
        limit_s = self._plan.settings.drain_s
        self._say(f"draining, at most {limit_s:g} s ({self._what_forces})")
        number = await self._unless_signal(self._drain(limit_s))
        if number is not None:
            self._control.stage = Stage.ending
            self._control.num_cut_off = self._deployment.num_requests
            self._say(f"forced: {counted(self._control.num_cut_off, 'request')} cut off")
            await self._deployment.kill()
            raise Interrupted(number)
        failure = failure or self._deployment.failure
        if failure is not None:
            raise failure

    async def _stay(self) -> None:
        """Until the check is done, if there is one, or a process ends."""
        watching = asyncio.ensure_future(self._deployment.watch())
        waiting = {watching}
        if self._check is not None:
            waiting.add(
                asyncio.ensure_future(asyncio.to_thread(self._check, self._executor, self._say))
            )
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    @property
    def _what_forces(self) -> str:
        if not self._takes_signals:
            return "stop(force=True) forces"
        return "Ctrl-C again forces" if self._signals.have_come(signal.SIGINT) else "Ctrl-C forces"

    async def _drain(self, limit_s: float) -> None:
        try:
            left = self.num_cut_off = await self._deployment.drain(limit_s)
        except LauncherError as problem:
            self._say(str(problem).splitlines()[0])
            return
        self._control.num_cut_off = left
        if left:
            cut_off = counted(left, "request")
            self._say(f"drain limit passed (drain_s={limit_s:g}): {cut_off} cut off")
        else:
            self._say("drained")

    async def _stop(self) -> None:
        """Ends every process, at once if a signal comes meanwhile."""
        stopping = asyncio.ensure_future(self._deployment.stop())
        if await self._unless_signal(asyncio.shield(stopping)) is not None:
            await self._deployment.kill_late()
        await stopping

    async def _unless_signal(self, wait: Awaitable[None]) -> int | None:
        """Waits; the number of the signal that came first, if one did."""
        waiting = asyncio.ensure_future(wait)
        signalled = asyncio.ensure_future(self._taken_signals.get())
        try:
            await asyncio.wait((waiting, signalled), return_when=asyncio.FIRST_COMPLETED)
            if not signalled.done():
                waiting.result()
                return None
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            return signalled.result()
        finally:
            signalled.cancel()

    def _take_signal(self, number: int) -> None:
        if self._signals.counts(number, time.monotonic()):
            self._is_told_to_end = True
            self._taken_signals.put_nowait(number)

    def end(self, force: bool) -> None:
        """Does what the first Ctrl-C does unless all ends already, or what a second one does."""
        ends = self._is_told_to_end or self._control.stage not in (Stage.starting, Stage.serving)
        self._is_told_to_end = True
        for _ in range(2 if force else 1 - ends):  # what is one too many stays in the queue
            self._taken_signals.put_nowait(signal.SIGINT)

    def _tell(self, process: str, news: str) -> None:
        elapsed_s = time.monotonic() - self._began_s
        self._say(f"{elapsed_s:6.1f} s  {process:<12} {news}")

    def _say(self, line: str, style: str | None = None) -> None:
        self._terminal.say(line, style)


class Signals:
    """Which signals count: not the echo of one that has just come."""

    def __init__(self) -> None:
        self._counted_s: dict[int, float] = {}

    def counts(self, number: int, now_s: float) -> bool:
        """Whether a signal that comes now is one of its own."""
        if now_s - self._counted_s.get(number, -math.inf) < ECHO_S:
            return False
        self._counted_s[number] = now_s
        return True

    def have_come(self, number: int) -> bool:
        return number in self._counted_s
