"""The state of a front end: who is there, who may come in, when to end."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from engine.config import Settings
from engine.frontend import exposition
from engine.frontend.admission import Admission
from engine.frontend.client import EngineClient
from engine.frontend.errors import Unavailable
from engine.frontend.readiness import Readiness, reaches_all_ready, readiness
from engine.frontend.reports import Reports
from engine.link import CoordinatorLink
from engine.metrics import (
    COORDINATOR_AGE,
    CPU_SECONDS,
    HTTP_IN_FLIGHT,
    MEMBERSHIP_EPOCH,
    STARTUP_PHASE,
    Metrics,
)
from engine.protocol import (
    DeploymentState,
    Drained,
    Loads,
    Member,
    Membership,
    MetricsReport,
    MetricsSnapshot,
    Phase,
    PlanAnswer,
    ProcessState,
    Register,
)
from engine.transport import Keys

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PATIENCE = 3
"""Times `health.silence_s`: until then a coordinator is there again that died with this process."""


class FrontEnd:
    """What a front end knows, and its link to the coordinator. Made in its event loop.

    Attributes:
        metrics: What this process counts.
        identity: Name and incarnation, such as `frontend-0.1`.
        admission: Lets requests in until the deployment drains.
        ended: Set when the process shall end.
        failure: Why it ends, if that is an error.
    """

    def __init__(
        self,
        settings: Settings,
        coordinator_endpoint: str,
        register: Register,
        client: EngineClient,
        metrics: Metrics,
        keys: Keys | None = None,
    ) -> None:
        self.settings = settings
        self.client = client
        self.metrics = metrics
        self.identity = f"{register.name}.{register.incarnation}"
        max_requests = settings.frontend.max_requests
        self.admission = Admission(max_requests, self._report_drained, self._report_count)
        self.ended = asyncio.Event()
        self.failure = ""
        self._register = register
        self._loop = asyncio.get_running_loop()
        self._membership: Membership | None = None
        self._was_ready = False
        self._is_listening = False
        self._progress = 0
        self._has_reached = asyncio.Event()
        self._phase, self._phase_start_s = Phase.importing, time.monotonic()
        # A snapshot may be late by as much as a process may be silent, and one may be lost.
        self._max_age_s = settings.health.silence_s + 2 * settings.coordinator.metrics_interval_s
        self._reports = Reports(self._max_age_s)
        self.link = CoordinatorLink(
            coordinator_endpoint,
            register,
            settings.health.heartbeat_s,
            self._in_loop(self._apply),
            on_loads=self._in_loop(self._apply_loads),
            on_metrics=self._in_loop(self._take_snapshot),
            pace=settings.coordinator,
            keys=keys,
        )

    def start(self) -> None:
        """Speaks with the coordinator from now on."""
        self.link.start()
        self._report_progress()
        self._report_metrics()

    def enter_phase(self, phase: Phase) -> None:
        """Tells the coordinator what the process does now."""
        now_s = time.monotonic()
        self.metrics.set(STARTUP_PHASE, now_s - self._phase_start_s, (self._phase.value,))
        self._phase, self._phase_start_s = phase, now_s
        self.link.enter_phase(phase)

    async def wait_for_ranks(self) -> None:
        """Waits until all ranks that are ready can be sent requests, but not for ever.

        What connects meanwhile waits in the listening sockets: nobody shall be refused because this
        process has only just been started again.
        """
        self.enter_phase(Phase.connecting)
        self.note_readiness()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE * self.settings.health.silence_s):
                await self._has_reached.wait()

    def start_listening(self) -> None:
        """The HTTP server takes requests from now on."""
        logger.info("listening")
        self._is_listening = True
        self.note_readiness()

    def readiness(self) -> Readiness:
        """Whether requests can be answered now."""
        age_s = round(self._loop.time() - self.client.heard_s, 3)
        return readiness(
            self._membership,
            self.settings.dp,
            self.client.connected_ranks,
            self._was_ready,
            self.settings.health.min_ranks,
            age_s if self._membership is not None else None,
        )

    def note_readiness(self) -> None:
        """Tells the coordinator when requests can be answered for the first time."""
        if not self._has_reached.is_set() and reaches_all_ready(
            self._membership, self.client.connected_ranks
        ):
            self._has_reached.set()
        if self._is_listening and not self._was_ready and self.readiness().ready:
            self._was_ready = True
            self.enter_phase(Phase.ready)

    async def render_metrics(self) -> bytes:
        """All processes' metrics as Prometheus reads them."""
        now_s = self._loop.time()
        is_told = now_s - self.client.heard_s <= self._max_age_s
        members = self._membership.members if self._membership and is_told else []
        reports = self._reports.shown(now_s)
        return await exposition.render(self.settings.model_name, reports, members)

    async def get_plan(self) -> PlanAnswer:
        """The plan and what became of it.

        Raises:
            Unavailable: The coordinator does not answer.
        """
        deadline_s = self.settings.health.silence_s
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(self.link.get_plan())
        except TimeoutError as problem:
            message = f"The coordinator did not answer within health.silence_s ({deadline_s} s)."
            raise Unavailable(message, code="coordinator_silent") from problem

    def end(self, reason: str) -> None:
        """Ends all requests with an error, and then the process."""
        if self.ended.is_set():
            return
        logger.info("ending: %s", reason)
        self.admission.drain()
        self.client.end(reason)
        self.ended.set()
        self._has_reached.set()  # nobody waits for them any more

    def end_from_thread(self, reason: str) -> None:
        """`end`, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self.end, reason)

    def _in_loop(self, call: Callable[[T], None]) -> Callable[[T], None]:
        """The call for the link's thread: made in the loop."""

        def call_soon(message: T) -> None:
            with suppress(RuntimeError):  # as above
                self._loop.call_soon_threadsafe(call, message)

        return call_soon

    def _apply_loads(self, loads: Loads) -> None:
        if not self.ended.is_set():
            self.client.apply_loads(loads)

    def _take_snapshot(self, snapshot: MetricsSnapshot) -> None:
        self._reports.take_snapshot(snapshot, self._loop.time())

    def _report_metrics(self) -> None:
        """Tells the coordinator the metrics, now and again and again."""
        if self.ended.is_set():
            return
        self._measure()
        own, values = self._register, self.metrics.values()
        report = MetricsReport(own.name, own.incarnation, own.role, own.rank, values)
        self._reports.take_own(report, self._loop.time())
        self.link.report_metrics(values)
        self._loop.call_later(self.settings.coordinator.metrics_interval_s, self._report_metrics)

    def _measure(self) -> None:
        """Sets the metrics that nobody counts."""
        metrics = self.metrics
        metrics.set(HTTP_IN_FLIGHT, self.admission.num_inside)
        metrics.set(COORDINATOR_AGE, self._loop.time() - self.client.heard_s)
        metrics.set(MEMBERSHIP_EPOCH, self._membership.epoch if self._membership else 0)
        metrics.set(CPU_SECONDS, time.process_time())

    def _apply(self, membership: Membership) -> None:
        if self.ended.is_set():
            return
        self._membership = membership
        own = self._find_own(membership)
        if own is not None and self._is_given_up(own):
            self.failure = f"the coordinator has given up this front end: {own.reason}"
            self.end(self.failure)
            return
        self.client.apply(membership.members)
        self.note_readiness()
        if membership.state is DeploymentState.serving:
            self.admission.open()
        elif own is None or own.state is not ProcessState.drained:
            self.admission.drain()

    def _find_own(self, membership: Membership) -> Member | None:
        name = self._register.name
        return next((member for member in membership.members if member.name == name), None)

    def _is_given_up(self, own: Member) -> bool:
        incarnation = self._register.incarnation
        is_lost = own.state is ProcessState.lost and own.incarnation == incarnation
        return is_lost or own.incarnation > incarnation

    def _report_progress(self) -> None:
        """Tells that the loop turns, again and again: the link's thread would live without it."""
        self._progress += 1
        self._report_count(self.admission.num_inside)
        health = self.settings.health
        # so often that it shows in a heartbeat well within the silence
        turn_s = min(health.heartbeat_s, (health.silence_s - health.heartbeat_s) / 2)
        self._loop.call_later(turn_s, self._report_progress)

    def _report_count(self, num_requests: int) -> None:
        self.link.report(self._progress, num_requests)

    def _report_drained(self) -> None:
        self.link.send(Drained(self._register.name, self._register.incarnation))
