"""The coordinator as a process: sockets and clock around registry and boards."""

import logging
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import assert_never

import msgspec
import zmq

from engine import __version__, transport
from engine.config import ProcessSpec, Role, Settings
from engine.coordinator.abandoned import remove_if_abandoned
from engine.coordinator.membership import Registry
from engine.coordinator.reports import LoadBoard, MetricsBoard
from engine.errors import ProtocolError
from engine.lifeline import GRACE, Lifeline
from engine.metrics import (
    COORDINATOR_MESSAGES,
    COORDINATOR_PUBLISHED,
    CPU_SECONDS,
    STARTING,
    STARTUP_PHASE,
    Metrics,
)
from engine.protocol import (
    ENCODER,
    FRONTENDS_TOPIC,
    LOADS_TOPIC,
    MEMBERSHIP_TOPIC,
    METRICS_TOPIC,
    TO_COORDINATOR,
    ApplyPlan,
    DeploymentState,
    Drained,
    GetPlan,
    Heartbeat,
    LoadReport,
    Member,
    Membership,
    Message,
    MetricsReport,
    Phase,
    PhaseEntered,
    PlanAnswer,
    ProcessExited,
    ProcessState,
    Register,
    RegisterAgain,
    Registered,
    ToCoordinator,
)

logger = logging.getLogger(__name__)

MAX_REPEAT_S = 0.5
"""Most seconds between two messages of a topic when nothing changes."""
_MAX_BATCH = 2000
"""Most messages that are taken before the clock is looked at."""


def run(
    process: ProcessSpec,
    settings: Settings,
    endpoint: str,
    incarnation: int,
    lifeline: Lifeline,
    run_directory: str | None,
    keys: transport.Keys | None = None,
    ports: Sequence[int] = (),
    asked_s: float | None = None,
) -> None:
    """Coordinates until the lifeline ends.

    Args:
        ports: On which to publish, if it listens for other machines; else any.
        asked_s: When the launcher asked for the process (monotonic clock).
        run_directory: Removed if the launcher has vanished without doing it.
    """
    coordinator = Coordinator(process, settings, endpoint, incarnation, keys, ports, asked_s)
    lifeline.watch(coordinator.stop, settings.health.stop_s * GRACE)
    try:
        coordinator.main_loop()
    finally:
        coordinator.close()
    # Its end, not a failure: after one the launcher lives, and would be waited for in vain.
    if run_directory is not None:
        remove_if_abandoned(Path(run_directory), waits=not lifeline.was_told)


class Coordinator:
    """Registration, heartbeats, membership, loads and metrics of one deployment."""

    def __init__(
        self,
        process: ProcessSpec,
        settings: Settings,
        endpoint: str,
        incarnation: int,
        keys: transport.Keys | None = None,
        ports: Sequence[int] = (),
        asked_s: float | None = None,
    ) -> None:
        began = time.monotonic()
        self._itself = Heartbeat(process.name, incarnation)
        health, pace = settings.health, settings.coordinator
        self._registry = Registry(
            health.silence_s, health.heartbeat_s, pace.interval_s, incarnation
        )
        self._loads, self._reported = LoadBoard(), MetricsBoard()
        self._metrics = Metrics(Role.coordinator)
        self._num_messages: Counter[str] = Counter()
        self._interval_s, self._metrics_interval_s = pace.interval_s, pace.metrics_interval_s
        # A lost message is made good, and nobody thinks the coordinator silent.
        self._repeat_s = min(MAX_REPEAT_S, health.silence_s / 4)
        self._plan = msgspec.Raw(ENCODER.encode(None))
        self._context = transport.Context(keys)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inbox, _ = transport.bind(self._context, zmq.ROUTER, endpoint)
        self._publisher, self._publish_endpoint = transport.bind(
            self._context,
            zmq.XPUB,
            transport.sibling_endpoint(endpoint, "membership", next(iter(ports), None)),
        )
        self._registry.register(_hello(process, incarnation, endpoint), time.monotonic())
        self._stopping = False
        self._logged_states: dict[str, ProcessState] = {}
        self._published_epoch = -1
        self._published_frontends: Sequence[object] = []
        self._published_s: dict[bytes, float] = {}
        self._has_newcomer = False
        self._next_look_s = 0.0
        if asked_s is not None:
            self._metrics.set(STARTUP_PHASE, began - asked_s, (STARTING,))
        self._metrics.set(STARTUP_PHASE, time.monotonic() - began, (Phase.ready.value,))

    def stop(self) -> None:
        """Ends the main loop; may be called from any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def main_loop(self) -> None:
        """Takes messages, looks at the clock, publishes what changed."""
        poller = zmq.Poller()
        for source in (self._inbox, self._publisher, self._wake):
            poller.register(source, zmq.POLLIN)
        while not self._stopping:
            wait_s = max(0.0, self._next_look_s - time.monotonic())
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            if self._inbox in ready:
                self._receive()
            if self._publisher in ready and self._take_subscriptions():
                self._has_newcomer = True
            now = time.monotonic()
            if now >= self._next_look_s:
                self._look(now)
                self._next_look_s += self._interval_s
                if self._next_look_s < now:  # late: what was missed is not made up for
                    self._next_look_s = now + self._interval_s
            elif now - self._published_s.get(MEMBERSHIP_TOPIC, 0.0) >= self._interval_s:
                self._publish_membership(now)

    def close(self) -> None:
        self._inbox.close()
        self._publisher.close()
        self._context.term()

    def _look(self, now: float) -> None:
        self._registry.heartbeat(self._itself, now)
        self._registry.tick(now)
        self._publish_membership(now)
        if not self._registry.is_settled:
            return
        if self._loads.has_changed or self._is_due(LOADS_TOPIC, now, self._repeat_s):
            self._publish(self._loads.snapshot(self._registry.epoch, now), LOADS_TOPIC, now)
        if self._is_due(METRICS_TOPIC, now, self._metrics_interval_s):
            self._reported.take(self._own_metrics(), now)
            self._publish(self._reported.snapshot(now), METRICS_TOPIC, now)

    def _receive(self) -> None:
        now = time.monotonic()
        for _ in range(_MAX_BATCH):
            try:
                sender, *frames = self._inbox.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = transport.decode(TO_COORDINATOR, b"".join(frames), sender.hex())
            except ProtocolError:
                logger.exception("message ignored")
                continue
            self._num_messages[type(message).__name__] += 1
            answer = self._take(message, now)
            if answer is not None:
                self._answer(sender, answer)

    def _take(self, message: ToCoordinator, now: float) -> Message | None:
        registry = self._registry
        match message:
            case LoadReport(name, load):
                if registry.is_current(name, load.incarnation):
                    self._loads.take(name, load, now)
            case Heartbeat(name, incarnation):
                if not registry.knows(name, incarnation):
                    return RegisterAgain()
                registry.heartbeat(message, now)
                if message.load_age_s is not None:
                    self._loads.confirm(name, now - message.load_age_s)
            case MetricsReport(name, incarnation):
                if registry.is_current(name, incarnation):
                    self._reported.take(message, now)
            case Register():
                self._register(message, now)
                return Registered(self._publish_endpoint)
            case ApplyPlan():
                registry.apply_plan(message, now)
                self._plan = message.plan
                return Registered(self._publish_endpoint)
            case PhaseEntered(name, incarnation, phase, remark):
                registry.enter_phase(name, incarnation, phase, now, remark)
            case Drained(name, incarnation):
                registry.drained(name, incarnation, now)
            case ProcessExited(name, incarnation, reason):
                if registry.is_current(name, incarnation):
                    self._forget(name)
                registry.lose(name, incarnation, reason, now)
            case GetPlan(call_id):
                plan = msgspec.msgpack.decode(self._plan)
                return PlanAnswer(call_id, plan, registry.members(now), registry.drift())
            case _ as never:
                assert_never(never)
        return None

    def _register(self, hello: Register, now: float) -> None:
        was_current = self._registry.is_current(hello.name, hello.incarnation)
        if not self._registry.register(hello, now):
            logger.warning("%s.%d came back from the lost", hello.name, hello.incarnation)
        elif not was_current:
            self._forget(hello.name)
            logger.info("%s.%d registered, pid %d", hello.name, hello.incarnation, hello.pid)

    def _forget(self, name: str) -> None:
        """Drops what an incarnation that is gone has reported."""
        self._loads.forget(name)
        self._reported.forget(name)

    def _answer(self, receiver: bytes, message: Message) -> None:
        try:
            transport.send(self._inbox, message, receiver)
        except zmq.ZMQError as problem:
            logger.warning("no answer to %s: %s", receiver.hex(), problem)

    def _take_subscriptions(self) -> bool:
        """Whether somebody subscribed, who must be told soon."""
        frames = []
        while self._publisher.poll(0):
            frames.append(self._publisher.recv())
        return any(frame[:1] == b"\x01" for frame in frames)

    def _publish_membership(self, now: float) -> None:
        """Publishes the membership if there is something new, or nothing was said for long."""
        registry = self._registry
        if not registry.is_settled:
            return
        is_new = registry.epoch != self._published_epoch or self._has_newcomer
        # who drains wants to see the requests in flight get fewer
        is_draining = registry.state is DeploymentState.draining
        repeat_s = self._interval_s if is_draining else self._repeat_s
        if not is_new and not self._is_due(MEMBERSHIP_TOPIC, now, repeat_s):
            return
        membership = registry.membership(now)
        self._log_states(membership.members)
        self._publish(membership, MEMBERSHIP_TOPIC, now)
        self._published_epoch = membership.epoch
        self._publish_frontends(membership, now)
        self._has_newcomer = False

    def _publish_frontends(self, membership: Membership, now: float) -> None:
        """Tells the engine cores what concerns them; a state of another rank does not."""
        shown = [m for m in membership.members if _concerns_engines(m)]
        identity = [(m.name, m.incarnation, m.state, m.endpoints) for m in shown]
        is_new = identity != self._published_frontends or self._has_newcomer
        if is_new or self._is_due(FRONTENDS_TOPIC, now, self._repeat_s):
            self._publish(msgspec.structs.replace(membership, members=shown), FRONTENDS_TOPIC, now)
            self._published_frontends = identity

    def _log_states(self, members: Iterable[Member]) -> None:
        for member in members:
            before = self._logged_states.get(member.name)
            self._logged_states[member.name] = member.state
            if before is member.state:
                continue
            if member.state in (ProcessState.suspect, ProcessState.lost):
                logger.warning("%s is %s: %s", member.name, member.state.value, member.reason)
            elif before is ProcessState.suspect:
                logger.info("%s is %s again", member.name, member.state.value)

    def _is_due(self, topic: bytes, now: float, interval_s: float) -> bool:
        # a look comes a little early or late: half an interval is close enough
        return now - self._published_s.get(topic, -math.inf) >= interval_s - self._interval_s / 2

    def _publish(self, message: Message, topic: bytes, now: float) -> None:
        transport.send(self._publisher, message, topic)
        self._published_s[topic] = now
        self._metrics.add(COORDINATOR_PUBLISHED, 1, (topic.decode(),))

    def _own_metrics(self) -> MetricsReport:
        for kind, number in self._num_messages.items():
            self._metrics.set(COORDINATOR_MESSAGES, number, (kind,))
        self._metrics.set(CPU_SECONDS, time.process_time())
        values = self._metrics.values()
        return MetricsReport(
            self._itself.name, self._itself.incarnation, Role.coordinator, None, values
        )


def _concerns_engines(member: Member) -> bool:
    return member.role is Role.frontend or member.state is ProcessState.lost


def _hello(process: ProcessSpec, incarnation: int, endpoint: str) -> Register:
    return Register(
        name=process.name,
        incarnation=incarnation,
        role=Role.coordinator,
        rank=None,
        node=process.node,
        pid=os.getpid(),
        devices=[],
        endpoints={"inbox": endpoint},
        versions={"flotilla": __version__, "python": platform.python_version()},
        phase=Phase.ready,
    )
