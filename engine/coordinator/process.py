"""The coordinator as a process: sockets and clock around the registry."""

import fcntl
import logging
import math
import os
import platform
import shutil
import time
from pathlib import Path
from typing import assert_never

import msgspec
import zmq

from engine import __version__, transport
from engine.config import ProcessSpec, Role, Settings
from engine.coordinator.membership import Registry
from engine.errors import ProtocolError
from engine.lifeline import Lifeline
from engine.protocol import (
    ENCODER,
    TO_COORDINATOR,
    ApplyPlan,
    BeginDrain,
    DeploymentState,
    Drained,
    GetPlan,
    Heartbeat,
    Message,
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

_REPEAT_S = 0.5
"""Seconds between two memberships when nothing changes: a lost message is made good."""


def run(
    process: ProcessSpec,
    settings: Settings,
    endpoint: str,
    incarnation: int,
    lifeline: Lifeline,
    run_directory: str | None,
) -> None:
    """Coordinates until the lifeline ends.

    Args:
        run_directory: Removed if the launcher has vanished without doing it.
    """
    coordinator = Coordinator(process, settings, endpoint, incarnation)
    lifeline.watch(coordinator.stop, settings.health.stop_s * 0.8)
    try:
        coordinator.main_loop()
    finally:
        coordinator.close()
        if run_directory is not None:
            remove_if_abandoned(Path(run_directory), waits=not lifeline.was_told)


def remove_if_abandoned(run_directory: Path, waits: bool) -> None:
    """Removes a run directory whose lock nobody holds, as a launcher that lives does.

    Args:
        waits: Until nobody holds the lock: of a launcher that dies, pipes may close before it.
    """
    try:
        lock = os.open(run_directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(run_directory / "lock")):  # no newer launcher's
            shutil.rmtree(run_directory, ignore_errors=True)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(lock)


class Coordinator:
    """Registration, heartbeats and membership of one deployment."""

    def __init__(
        self, process: ProcessSpec, settings: Settings, endpoint: str, incarnation: int
    ) -> None:
        self._itself = Heartbeat(process.name, incarnation)
        self._registry = Registry(settings.health.silence_s, settings.health.progress_s)
        self._interval_s = settings.coordinator.interval_s
        self._plan = msgspec.Raw(ENCODER.encode(None))
        self._context = zmq.Context()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inbox, _ = transport.bind(self._context, zmq.ROUTER, endpoint)
        self._members, self._publish_endpoint = transport.bind(
            self._context, zmq.XPUB, transport.sibling_endpoint(endpoint, "membership")
        )
        self._registry.register(_hello(process, incarnation, endpoint), time.monotonic())
        self._registry.enter_phase(process.name, incarnation, Phase.ready, time.monotonic())
        self._stopping = False
        self._logged_states: dict[str, ProcessState] = {}
        self._published_epoch = -1
        self._published_at = 0.0

    def stop(self) -> None:
        """Ends the main loop; may be called from any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def main_loop(self) -> None:
        """Takes messages, watches the clock, publishes what changed."""
        poller = zmq.Poller()
        for source in (self._inbox, self._members, self._wake):
            poller.register(source, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(math.ceil(self._interval_s * 1000)))
            if self._inbox in ready:
                self._receive()
            someone_new = self._members in ready and self._take_subscriptions()
            now = time.monotonic()
            self._registry.heartbeat(self._itself, now)
            self._registry.tick(now)
            changed = self._registry.epoch != self._published_epoch
            # who drains wants to see the requests in flight get fewer
            is_draining = self._registry.state is DeploymentState.draining
            repeat_s = self._interval_s if is_draining else _REPEAT_S
            if someone_new or changed or now - self._published_at >= repeat_s:
                self._publish(now)

    def close(self) -> None:
        self._inbox.close()
        self._members.close()
        self._context.term()

    def _receive(self) -> None:
        while self._inbox.poll(0):
            sender, *frames = self._inbox.recv_multipart()
            try:
                message = transport.decode(TO_COORDINATOR, b"".join(frames), sender.hex())
            except ProtocolError:
                logger.exception("message ignored")
                continue
            answer = self._take(message, time.monotonic())
            if answer is not None:
                self._answer(sender, answer)

    def _take(self, message: ToCoordinator, now: float) -> Message | None:
        registry = self._registry
        match message:
            case Register():
                if not registry.register(message, now):
                    logger.warning(
                        "%s.%d came back from the lost", message.name, message.incarnation
                    )
                else:
                    logger.info("%s registered, pid %d", message.name, message.pid)
                return Registered(self._publish_endpoint)
            case ApplyPlan():
                registry.apply_plan(message.processes)
                self._plan = message.plan
                return Registered(self._publish_endpoint)
            case PhaseEntered(name, incarnation, phase, remark):
                registry.enter_phase(name, incarnation, phase, now, remark)
            case Heartbeat(name, incarnation):
                if not registry.knows(name, incarnation):
                    return RegisterAgain()
                registry.heartbeat(message, now)
            case Drained(name, incarnation):
                registry.drained(name, incarnation, now)
            case ProcessExited(name, incarnation, reason):
                registry.lose(name, incarnation, reason, now)
            case BeginDrain():
                registry.begin_drain()
            case GetPlan(call_id):
                plan = msgspec.msgpack.decode(self._plan)
                return PlanAnswer(call_id, plan, registry.members(now), registry.drift())
            case _ as never:
                assert_never(never)
        return None

    def _answer(self, receiver: bytes, message: Message) -> None:
        try:
            transport.send(self._inbox, message, receiver)
        except zmq.ZMQError as problem:
            logger.warning("no answer to %s: %s", receiver.hex(), problem)

    def _take_subscriptions(self) -> bool:
        """Whether somebody subscribed, who must be told at once."""
        frames = []
        while self._members.poll(0):
            frames.append(self._members.recv())
        return any(frame[:1] == b"\x01" for frame in frames)

    def _publish(self, now: float) -> None:
        membership = self._registry.membership(now)
        for member in membership.members:
            is_new = self._logged_states.get(member.name) is not member.state
            if is_new and member.state in (ProcessState.suspect, ProcessState.lost):
                logger.warning("%s is %s: %s", member.name, member.state.value, member.reason)
            self._logged_states[member.name] = member.state
        transport.send(self._members, membership)
        self._published_epoch, self._published_at = self._registry.epoch, now


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
    )
