"""The state of a front end: who is there, who may come in, when to end."""

import asyncio
import logging
from contextlib import suppress

from engine.config import Settings
from engine.frontend.admission import Admission
from engine.frontend.client import EngineClient
from engine.frontend.errors import Unavailable
from engine.frontend.readiness import Readiness, readiness
from engine.link import CoordinatorLink
from engine.protocol import (
    DeploymentState,
    Drained,
    Member,
    Membership,
    Phase,
    PlanAnswer,
    ProcessState,
    Register,
)

logger = logging.getLogger(__name__)


class FrontEnd:
    """What a front end knows, and its link to the coordinator. Made in its event loop.

    Attributes:
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
    ) -> None:
        self.settings = settings
        self.client = client
        self.admission = Admission(self._report_drained, self._report_count)
        self.ended = asyncio.Event()
        self.failure = ""
        self._register = register
        self._loop = asyncio.get_running_loop()
        self._membership: Membership | None = None
        self._was_ready = False
        self._is_listening = False
        self.link = CoordinatorLink(
            coordinator_endpoint, register, settings.health.heartbeat_s, self._on_membership
        )

    def start_listening(self) -> None:
        """The HTTP server takes requests from now on."""
        self._is_listening = True
        self.link.enter_phase(Phase.connecting)
        self.note_readiness()

    def readiness(self) -> Readiness:
        """Whether requests can be answered now."""
        connected = self.client.connected_ranks
        return readiness(self._membership, self.settings.dp, connected, self._was_ready)

    def note_readiness(self) -> None:
        """Tells the coordinator when requests can be answered for the first time."""
        if self._is_listening and not self._was_ready and self.readiness().ready:
            self._was_ready = True
            self.link.enter_phase(Phase.ready)

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

    def end_from_thread(self, reason: str) -> None:
        """`end`, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self.end, reason)

    def _on_membership(self, membership: Membership) -> None:
        """Called in the link's thread."""
        with suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self._apply, membership)

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

    def _report_count(self, num_requests: int) -> None:
        self.link.report(progress=0, num_requests=num_requests)

    def _report_drained(self) -> None:
        self.link.send(Drained(self._register.name, self._register.incarnation))
