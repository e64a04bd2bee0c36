"""The link of a process to the coordinator: hello, heartbeats, reports; what is published.

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
from typing import assert_never

import msgspec
import zmq

from engine import transport
from engine.config import CoordinatorOptions, Role
from engine.errors import ProtocolError
from engine.latest import Latest
from engine.metrics import MetricValue
from engine.protocol import (
    FROM_COORDINATOR,
    FRONTENDS_TOPIC,
    LAUNCHER,
    LOADS_TOPIC,
    MEMBERSHIP_TOPIC,
    METRICS_TOPIC,
    PUBLISHED,
    ApplyPlan,
    GetPlan,
    Heartbeat,
    LoadReport,
    Loads,
    Membership,
    Message,
    MetricsReport,
    MetricsSnapshot,
    Phase,
    PhaseEntered,
    PlanAnswer,
    Published,
    RankLoad,
    Register,
    RegisterAgain,
    Registered,
    coordinator_of,
)

logger = logging.getLogger(__name__)

DEFAULT_PACE = CoordinatorOptions()


class CoordinatorLink:
    """One process's (or the launcher's) side of the sockets to the coordinator.

    All methods may be called from any thread.

    Args:
        hello: First message: `Register` of a process, `ApplyPlan` of the launcher; repeated to a
            restarted coordinator.
        on_membership: Called in the link's thread with every membership; an engine core's shows no
            other engine cores than lost ones.
        on_loads: Called in the link's thread with every snapshot of all ranks' loads; None: the
            process does not want them.
        on_metrics: The same for metrics.
        pace: How often reports are sent.
        keys: The deployment's, if the coordinator may be on another machine.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Register | ApplyPlan,
        heartbeat_s: float,
        on_membership: Callable[[Membership], None],
        *,
        on_loads: Callable[[Loads], None] | None = None,
        on_metrics: Callable[[MetricsSnapshot], None] | None = None,
        pace: CoordinatorOptions = DEFAULT_PACE,
        keys: transport.Keys | None = None,
    ) -> None:
        self._endpoint, self._keys = endpoint, keys
        self._hello = hello
        self._heartbeat_s = heartbeat_s
        self._on_membership, self._on_loads, self._on_metrics = on_membership, on_loads, on_metrics
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._is_closed = False
        self._publish_endpoint = ""
        self._newest_coordinator = 0
        self._reported = 0, 0, 0.0
        self._load: Latest[RankLoad] = Latest(pace.interval_s)
        self._metrics: Latest[list[MetricValue]] = Latest(pace.metrics_interval_s)
        self._calls: dict[int, Future[PlanAnswer]] = {}
        self._thread = threading.Thread(target=self._run, name="coordinator-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def enter_phase(self, phase: Phase, remark: str = "") -> None:
        """Tells what the process does now; `Phase.ready` makes it ready.

        Args:
            remark: What the user should know, shown with the phase.
        """
        hello = self._hello
        assert isinstance(hello, Register)
        self._hello = msgspec.structs.replace(hello, phase=phase, remark=remark)
        self.send(PhaseEntered(hello.name, hello.incarnation, phase, remark))

    def change_hello(self, hello: ApplyPlan) -> None:
        """Tells the plan anew, now and to a restarted coordinator."""
        self._hello = hello
        self.send(hello)

    def report(self, progress: int, num_requests: int, patience_s: float = 0.0) -> None:
        """Progress and work that the next heartbeats tell, and how long the next may take."""
        self._reported = progress, num_requests, patience_s

    def report_load(self, load: RankLoad) -> None:
        """The rank's load, sent soon; a newer one replaces it, an equal one is only confirmed."""
        if self._load.put(load, time.monotonic()):
            self._wake_up()

    def report_metrics(self, values: list[MetricValue]) -> None:
        """The process's metrics, sent soon; newer ones replace them."""
        if self._metrics.put(values, time.monotonic()):
            self._wake_up()

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
        self._outbox.put(message)
        self._wake_up()

    def close(self) -> None:
        """Sends what waits to be sent, and ends the thread."""
        self._outbox.put(None)
        self._wake_up()
        with self._lock:
            self._is_closed = True
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._wake)

    def _wake_up(self) -> None:
        with self._lock:
            if not self._is_closed:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        with transport.Context(self._keys) as context:
            dealer = transport.connect(context, zmq.DEALER, self._endpoint)
            published = transport.client(context, zmq.SUB, self._endpoint)
            for topic in self._topics():
                published.setsockopt(zmq.SUBSCRIBE, topic)
            dealer.setsockopt(zmq.LINGER, 100)
            poller = zmq.Poller()
            for source in (dealer, published, self._wake):
                poller.register(source, zmq.POLLIN)
            try:
                self._loop(poller, dealer, published)
            finally:
                dealer.close()
                published.close()

    def _topics(self) -> list[bytes]:
        hello = self._hello
        is_engine = isinstance(hello, Register) and hello.role is Role.engine
        topics = [FRONTENDS_TOPIC if is_engine else MEMBERSHIP_TOPIC]
        if self._on_loads is not None:
            topics.append(LOADS_TOPIC)
        if self._on_metrics is not None:
            topics.append(METRICS_TOPIC)
        return topics

    def _loop(
        self, poller: zmq.Poller, dealer: zmq.Socket[bytes], published: zmq.Socket[bytes]
    ) -> None:
        _send(dealer, self._hello)
        next_beat = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_beat:
                _send(dealer, self._heartbeat(now))
                next_beat = now + self._heartbeat_s
            self._send_reports(dealer, now)
            due = min(next_beat, self._load.due, self._metrics.due)
            wait_s = max(0.0, due - time.monotonic())
            ready = dict(poller.poll(math.ceil(1000 * wait_s)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
                if not self._send_outbox(dealer):
                    return
            if dealer in ready:
                self._receive_answers(dealer, published)
            if published in ready:
                self._receive_published(published)

    def _heartbeat(self, now: float) -> Heartbeat:
        match self._hello:
            case Register(name=name, incarnation=incarnation):
                progress, num_requests, patience_s = self._reported
                load_age_s = self._load.age_s(now)
                return Heartbeat(name, incarnation, progress, num_requests, load_age_s, patience_s)
            case ApplyPlan():
                return Heartbeat(LAUNCHER, 0)
            case _ as never:
                assert_never(never)

    def _send_reports(self, dealer: zmq.Socket[bytes], now: float) -> None:
        hello = self._hello
        load, values = self._load.take(now), self._metrics.take(now)
        if not isinstance(hello, Register):
            return
        if load is not None:
            _send(dealer, LoadReport(hello.name, load))
        if values is not None:
            _send(
                dealer,
                MetricsReport(hello.name, hello.incarnation, hello.role, hello.rank, values),
            )

    def _send_outbox(self, dealer: zmq.Socket[bytes]) -> bool:
        """False when the link was closed."""
        while not self._outbox.empty():
            message = self._outbox.get()
            if message is None:
                return False
            _send(dealer, message)
        return True

    def _receive_answers(self, dealer: zmq.Socket[bytes], published: zmq.Socket[bytes]) -> None:
        while dealer.poll(0):
            try:
                answer = transport.decode(FROM_COORDINATOR, dealer.recv(), "coordinator")
            except ProtocolError:
                logger.exception("answer ignored")
                continue
            match answer:
                case Registered(publish_endpoint):
                    self._follow(published, publish_endpoint)
                case RegisterAgain():
                    _send(dealer, self._hello)
                    self._load.repeat()
                    self._metrics.repeat()
                case PlanAnswer(call_id):
                    future = self._calls.get(call_id)
                    if future is not None and future.set_running_or_notify_cancel():
                        future.set_result(answer)

    def _follow(self, published: zmq.Socket[bytes], endpoint: str) -> None:
        """Listens at this endpoint, and no more at the one before."""
        if endpoint == self._publish_endpoint:
            return
        if self._publish_endpoint:
            published.disconnect(self._publish_endpoint)
        self._publish_endpoint = endpoint
        published.connect(endpoint)

    def _receive_published(self, published: zmq.Socket[bytes]) -> None:
        newest: dict[bytes, bytes] = {}
        while published.poll(0):  # each message replaces the one before of its topic
            topic, frame = published.recv_multipart()
            newest[topic] = frame
        for frame in newest.values():
            try:
                message = transport.decode(PUBLISHED, frame, "coordinator")
            except ProtocolError:
                logger.exception("what the coordinator published is ignored")
                continue
            if not self._is_of_replaced(message):
                self._tell(message)

    def _is_of_replaced(self, message: Published) -> bool:
        """Whether another coordinator has spoken since the one that published this."""
        if isinstance(message, MetricsSnapshot):
            return False
        coordinator = coordinator_of(message.epoch)
        self._newest_coordinator = max(self._newest_coordinator, coordinator)
        return coordinator < self._newest_coordinator

    def _tell(self, message: Published) -> None:
        try:
            match message:
                case Membership():
                    self._on_membership(message)
                case Loads() if self._on_loads is not None:
                    self._on_loads(message)
                case MetricsSnapshot() if self._on_metrics is not None:
                    self._on_metrics(message)
        except Exception:  # a defect of the process; without heartbeats it would be given up
            logger.exception("%s could not be taken", type(message).__name__)


def _send(dealer: zmq.Socket[bytes], message: Message) -> None:
    try:
        transport.send(dealer, message)
    except zmq.Again:  # a coordinator that has been gone for hours: it will ask for what matters
        logger.warning("the coordinator does not read: %s was not sent", type(message).__name__)
