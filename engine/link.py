"""The link of a process to the coordinator: hello, heartbeats, facts; membership.

It runs in a thread of its own, so that a long step of the model is not taken for silence.
"""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import zmq

from engine import transport
from engine.errors import ProtocolError
from engine.protocol import (
    FROM_COORDINATOR,
    MEMBERSHIP,
    GetPlan,
    Heartbeat,
    Membership,
    Message,
    Phase,
    PhaseEntered,
    PlanAnswer,
    Register,
    RegisterAgain,
    Registered,
)

logger = logging.getLogger(__name__)


class CoordinatorLink:
    """One process's (or the launcher's) side of the sockets to the coordinator.

    All methods may be called from any thread.

    Args:
        hello: First message: `Register` of a process, `ApplyPlan` of the launcher; repeated to a
            restarted coordinator.
        on_membership: Called in the link's thread with every membership.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Message,
        heartbeat_s: float,
        on_membership: Callable[[Membership], None],
    ) -> None:
        self._endpoint = endpoint
        self._hello = hello
        self._heartbeat_s = heartbeat_s
        self._on_membership = on_membership
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._is_closed = False
        self._subscriptions: set[str] = set()
        self._phase, self._remark = Phase.importing, ""
        self._progress = 0
        self._num_requests = 0
        self._calls: dict[int, Future[PlanAnswer]] = {}
        self._thread = threading.Thread(target=self._run, name="coordinator-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def enter_phase(self, phase: Phase, remark: str = "") -> None:
        """Tells what the process does now; `Phase.ready` makes it ready.

        Args:
            remark: What the user should know, shown with the phase.
        """
        assert isinstance(self._hello, Register)
        self._phase, self._remark = phase, remark
        self.send(PhaseEntered(self._hello.name, self._hello.incarnation, phase, remark))

    def report(self, progress: int, num_requests: int) -> None:
        """Progress and work that the next heartbeats tell."""
        self._progress = progress
        self._num_requests = num_requests

    def get_plan(self) -> Future[PlanAnswer]:
        """The plan and what became of it; the caller owns the deadline."""
        future: Future[PlanAnswer] = Future()
        call_id = id(future)
        self._calls[call_id] = future
        future.add_done_callback(lambda _: self._calls.pop(call_id, None))
        self.send(GetPlan(call_id))
        return future

    def send(self, message: Message) -> None:
        """Sends soon; after `close`, does nothing."""
        with self._lock:
            if not self._is_closed:
                self._outbox.put(message)
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Sends what waits to be sent, and ends the thread."""
        with self._lock:
            self._is_closed = True
            self._outbox.put(None)
            os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        with zmq.Context() as context:
            dealer = transport.connect(context, zmq.DEALER, self._endpoint)
            members = context.socket(zmq.SUB)
            members.setsockopt(zmq.SUBSCRIBE, b"")
            members.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.LINGER, 100)
            poller = zmq.Poller()
            for source in (dealer, members, self._wake):
                poller.register(source, zmq.POLLIN)
            try:
                self._loop(poller, dealer, members)
            finally:
                dealer.close()
                members.close()

    def _loop(
        self, poller: zmq.Poller, dealer: zmq.Socket[bytes], members: zmq.Socket[bytes]
    ) -> None:
        _send(dealer, self._hello)
        next_beat = time.monotonic()
        while True:
            if time.monotonic() >= next_beat:
                self._send_heartbeat(dealer)
                next_beat = time.monotonic() + self._heartbeat_s
            wait_s = max(0.0, next_beat - time.monotonic())
            ready = dict(poller.poll(math.ceil(1000 * wait_s)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
                if not self._send_outbox(dealer):
                    return
            if dealer in ready:
                self._receive_answers(dealer, members)
            if members in ready:
                self._receive_membership(members)

    def _send_heartbeat(self, dealer: zmq.Socket[bytes]) -> None:
        if isinstance(self._hello, Register):
            beat = Heartbeat(
                self._hello.name, self._hello.incarnation, self._progress, self._num_requests
            )
            _send(dealer, beat)

    def _send_outbox(self, dealer: zmq.Socket[bytes]) -> bool:
        """False when the link was closed."""
        while not self._outbox.empty():
            message = self._outbox.get()
            if message is None:
                return False
            _send(dealer, message)
        return True

    def _receive_answers(self, dealer: zmq.Socket[bytes], members: zmq.Socket[bytes]) -> None:
        while dealer.poll(0):
            try:
                answer = transport.decode(FROM_COORDINATOR, dealer.recv(), "coordinator")
            except ProtocolError:
                logger.exception("answer ignored")
                continue
            match answer:
                case Registered(publish_endpoint):
                    if publish_endpoint not in self._subscriptions:
                        self._subscriptions.add(publish_endpoint)
                        members.connect(publish_endpoint)
                case RegisterAgain():
                    _send(dealer, self._hello)
                    if isinstance(self._hello, Register):
                        self.enter_phase(self._phase, self._remark)
                case PlanAnswer(call_id):
                    future = self._calls.get(call_id)
                    if future is not None and future.set_running_or_notify_cancel():
                        future.set_result(answer)

    def _receive_membership(self, members: zmq.Socket[bytes]) -> None:
        frame = None
        while members.poll(0):  # each message replaces the one before
            frame = members.recv()
        if frame is None:
            return
        try:
            membership = transport.decode(MEMBERSHIP, frame, "coordinator")
        except ProtocolError:
            logger.exception("membership ignored")
            return
        self._on_membership(membership)


def _send(dealer: zmq.Socket[bytes], message: Message) -> None:
    try:
        transport.send(dealer, message)
    except zmq.Again:  # a coordinator that has been gone for hours: it will ask for what matters
        logger.warning("the coordinator does not read: %s was not sent", type(message).__name__)
