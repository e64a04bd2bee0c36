"""An engine core as a process: sockets to the front ends, link to the coordinator, loop."""

import logging
import os
import platform
import time
from collections import deque
from importlib import metadata
from pathlib import Path

import zmq

from engine import __version__, transport
from engine.checkpoints.sources import model_directory
from engine.config import Device, Found, ModelKind, ProcessSpec, Role, Settings
from engine.core.engine_core import EngineCore
from engine.core.frontend_link import FrontendLink
from engine.core.patience import Patience
from engine.core.request import RequestRefused
from engine.core.scheduler import Produced
from engine.errors import ProtocolError
from engine.lifeline import GRACE, Ending
from engine.link import CoordinatorLink
from engine.metrics import CPU_SECONDS, LOST_MESSAGES, STARTING, STARTUP_PHASE
from engine.model.runner import Runner
from engine.protocol import (
    TO_ENGINE,
    AbortRequests,
    AddRequest,
    FinishReason,
    Member,
    Membership,
    Phase,
    ProcessState,
    Register,
    RequestOutput,
)

logger = logging.getLogger(__name__)


def run(
    process: ProcessSpec,
    settings: Settings,
    coordinator_endpoint: str,
    incarnation: int,
    lifeline: Ending,
    found: Found | None = None,
    keys: transport.Keys | None = None,
    asked_s: float | None = None,
) -> None:
    """Serves one rank until the lifeline ends or the coordinator calls this incarnation lost.

    Args:
        found: Where it runs, if somebody else has placed it; else where it was planned.
        asked_s: When somebody on this machine asked for the process (monotonic clock).
    """
    core = CoreProcess(process, settings, coordinator_endpoint, incarnation, found, keys, asked_s)
    lifeline.watch(core.stop, settings.health.stop_s * GRACE)
    try:
        core.start_up()
        core.main_loop()
    finally:
        core.shut_down()


class CoreProcess:
    """`start_up -> main_loop -> shut_down` of one rank.

    Attributes:
        num_requests: Waiting or running.
    """

    def __init__(
        self,
        process: ProcessSpec,
        settings: Settings,
        coordinator_endpoint: str,
        incarnation: int,
        found: Found | None = None,
        keys: transport.Keys | None = None,
        asked_s: float | None = None,
    ) -> None:
        assert process.rank is not None
        planned = [device for worker in process.workers for device in worker.devices]
        self._found = found or Found(process.node, planned)
        self._process, self._settings = process, settings
        self._rank, self._incarnation = process.rank, incarnation
        self._context = transport.Context(keys)
        self._frontends: dict[str, FrontendLink] = {}
        self._newest_membership: deque[Membership] = deque(maxlen=1)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._progress = 0
        self._patience = Patience(settings.health.suspect_s)
        self.num_requests = 0
        self._poller = zmq.Poller()
        self._poller.register(self._wake, zmq.POLLIN)
        self._asked_s, self._began_s = asked_s, time.monotonic()
        self._load_due_s = self._metrics_due_s = 0.0
        # An idle main loop turns often enough to show in a heartbeat, well within the silence, that
        # it is not stuck.
        turn_s = (settings.health.silence_s - settings.health.heartbeat_s) / 2
        idle_wait_s = min(settings.coordinator.metrics_interval_s, turn_s)
        self._idle_wait_ms = max(1, round(idle_wait_s * 1000))
        self._link = CoordinatorLink(
            *(coordinator_endpoint, self._hello(), settings.health.heartbeat_s),
            self._on_membership,
            pace=settings.coordinator,
            keys=keys,
        )

    def stop(self) -> None:
        """Ends the main loop after the step under way; may be called from any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def start_up(self) -> None:
        """Imports, loads, allocates and warms up, telling the coordinator each phase."""
        self._link.start()
        runner = self._make_runner()
        ended_s = {Phase.importing: time.monotonic()}
        for phase, action in (
            (Phase.preparing_kernels, runner.prepare_kernels),
            (Phase.loading_weights, runner.load_weights),
            (Phase.allocating_cache, runner.allocate_cache),
            (Phase.warming_up, runner.warm_up),
        ):
            if self._stopping:
                return
            self._link.enter_phase(phase)
            action()
            ended_s[phase] = time.monotonic()
        self._core = EngineCore(self._settings, runner)
        self._patience = Patience(self._settings.health.suspect_s)  # a first step is no measure
        if self._asked_s is not None:
            self._note_phase(STARTING, self._asked_s, self._began_s)
        for phase, phase_ended_s in ended_s.items():
            self._note_phase(phase.value, self._began_s, phase_ended_s)
            self._began_s = phase_ended_s
        self._link.enter_phase(Phase.ready, runner.remark)
        logger.info("ready")

    def main_loop(self) -> None:
        """Receives, steps and sends until told to stop; waits only when it has no work."""
        while not self._stopping:
            self._receive(0 if self.num_requests else self._idle_wait_ms)
            self.num_requests = self._core.num_requests
            self._tell_progress()  # before the step: one that hangs has to be known to be work
            self._report()
            if self.num_requests:
                self._send(self._core.step())
                self.num_requests = self._core.num_requests
                if not self.num_requests:
                    self._report()
            self._note_progress()

    def shut_down(self) -> None:
        self._link.close()
        for frontend in self._frontends.values():
            frontend.close()
        self._context.term()

    def _note_phase(self, phase: str, began_s: float, ended_s: float) -> None:
        self._core.metrics().set(STARTUP_PHASE, ended_s - began_s, (phase,))

    def _note_progress(self) -> None:
        """Called after each layer, each step and each turn: a long step is not a stuck one."""
        self._progress += 1
        self._patience.note(time.monotonic())
        self._tell_progress()

    def _tell_progress(self) -> None:
        self._link.report(self._progress, self.num_requests, self._patience.value_s)

    def _report(self) -> None:
        """Hands load and metrics to the link when it is time, and whenever the work is done."""
        now = time.monotonic()
        if now >= self._load_due_s or not self.num_requests:
            self._load_due_s = now + self._settings.coordinator.interval_s
            self._link.report_load(self._core.load(self._rank, self._incarnation))
        if now >= self._metrics_due_s or not self.num_requests:
            self._metrics_due_s = now + self._settings.coordinator.metrics_interval_s
            metrics = self._core.metrics()
            metrics.set(CPU_SECONDS, time.process_time())
            self._link.report_metrics(metrics.values())

    def _make_runner(self) -> Runner:
        if self._settings.model.kind is ModelKind.dummy:
            from engine.model.dummy_runner import DummyRunner

            return DummyRunner(self._settings.model.step_s)
        directory = model_directory(self._settings.model, logger.info)
        return self._torch_runner(directory)

    def _torch_runner(self, directory: Path) -> Runner:
        from engine.model.torch_runner import TorchRunner

        worker = self._process.workers[0]
        device = None
        if self._settings.device is Device.cuda:  # without ids it sees its own devices only
            device = worker.devices[0] if worker.devices else 0
        return TorchRunner(
            self._settings, directory, device, worker.num_threads, self._note_progress
        )

    def _hello(self) -> Register:
        return Register(
            name=self._process.name,
            incarnation=self._incarnation,
            role=Role.engine,
            rank=self._rank,
            node=self._found.node,
            pid=os.getpid(),
            devices=self._found.devices,
            endpoints={},
            versions={
                "flotilla": __version__,
                "python": platform.python_version(),
                "torch": metadata.version("torch"),
            },
        )

    def _on_membership(self, membership: Membership) -> None:
        """In the link's thread: the newest is all that counts, but for what fences this process."""
        for member in membership.members:
            is_own = (member.name, member.incarnation) == (self._process.name, self._incarnation)
            if is_own and member.state is ProcessState.lost and not self._stopping:
                self._stopping = True
                logger.error(
                    "the coordinator has given this process up (%s): ending", member.reason
                )
        self._newest_membership.append(membership)
        os.eventfd_write(self._wake, 1)

    def _receive(self, timeout_ms: int) -> None:
        ready = dict(self._poller.poll(timeout_ms))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if self._newest_membership:
            self._apply(self._newest_membership.popleft())
        for frontend in self._frontends.values():
            if frontend.requests in ready:
                self._receive_from(frontend)

    def _receive_from(self, frontend: FrontendLink) -> None:
        while frontend.requests.poll(0):
            try:
                message = transport.decode(TO_ENGINE, frontend.requests.recv(), frontend.name)
            except ProtocolError:
                logger.exception("message ignored")
                continue
            num_lost = frontend.note_received(message.sequence)
            if num_lost:
                self._core.metrics().add(LOST_MESSAGES, num_lost, (frontend.process_name,))
            match message:
                case AddRequest():
                    self._add(frontend, message)
                case AbortRequests():
                    self._abort(frontend, message)

    def _add(self, frontend: FrontendLink, message: AddRequest) -> None:
        try:
            self._core.add_request(frontend.name, message)
        except RequestRefused as problem:
            refusal = RequestOutput(message.request_id, [], FinishReason.error, 0, str(problem))
            frontend.send([refusal])

    def _abort(self, frontend: FrontendLink, message: AbortRequests) -> None:
        stopped = frozenset(message.stopped)
        for request_id in message.request_ids:
            reason = FinishReason.stop if request_id in stopped else FinishReason.abort
            self._core.end_request(frontend.name, request_id, reason)
        if not message.request_ids:  # a probe
            frontend.send([])

    def _send(self, produced: list[Produced]) -> None:
        by_frontend: dict[str, list[RequestOutput]] = {}
        for item in produced:
            by_frontend.setdefault(item.request.key.frontend, []).append(item.output())
        for name, outputs in by_frontend.items():
            self._frontends[name].send(outputs)

    def _apply(self, membership: Membership) -> None:
        """Connects to new front ends, forgets gone ones."""
        alive: dict[str, Member] = {
            f"{member.name}.{member.incarnation}": member
            for member in membership.members
            if member.role is Role.frontend and member.state is not ProcessState.lost
        }
        for name in self._frontends.keys() - alive.keys():
            frontend = self._frontends.pop(name)
            self._poller.unregister(frontend.requests)
            frontend.close()
            self._core.abort_all_of(name)
        for name in alive.keys() - self._frontends.keys():
            member = alive[name]
            if not member.endpoints:  # a restarted coordinator has not heard of it yet
                continue
            identity = (member.name, name, member.endpoints, self._rank, self._incarnation)
            frontend = FrontendLink(self._context, *identity)
            self._frontends[name] = frontend
            self._poller.register(frontend.requests, zmq.POLLIN)
