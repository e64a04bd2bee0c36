"""A coordinator and engine cores that speak the real protocol over real sockets, in one thread.

They do what the test says: engines answer with a fixed text, or only when told.
"""

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import zmq

from engine import transport
from engine.protocol import (
    LOADS_TOPIC,
    MEMBERSHIP_TOPIC,
    METRICS_TOPIC,
    TO_COORDINATOR,
    AbortRequests,
    AddRequest,
    DeploymentState,
    Drained,
    EngineOutputs,
    FinishReason,
    GetPlan,
    Heartbeat,
    Loads,
    Member,
    Membership,
    Message,
    MetricsReport,
    MetricsSnapshot,
    Phase,
    PhaseEntered,
    PlanAnswer,
    ProcessState,
    RankLoad,
    Register,
    Registered,
    RequestOutput,
)
from tests.engine.frontend.fake_engine import FakeEngine

T = TypeVar("T")
DEADLINE_S = 20.0
"""Far above what anything here takes on a busy machine."""


@dataclass
class Seen:
    """What has arrived, in order."""

    added: list[tuple[int, AddRequest]] = field(default_factory=list)
    """With the rank."""
    aborted: list[tuple[int, int]] = field(default_factory=list)
    """Rank and request id."""
    stopped: list[int] = field(default_factory=list)
    """Request ids among them that a stop string ended."""
    phases: list[Phase] = field(default_factory=list)
    drained: list[Drained] = field(default_factory=list)
    frontend: Register | None = None
    metrics: list[MetricsReport] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)


class FakeDeployment:
    """A coordinator and its engines.

    Args:
        directory: For the ipc sockets.

    Attributes:
        answer: What engines say to each request, a token per step; None: only `output` answers.
        is_silent: The coordinator does not answer GetPlan.
        repeat_ms: The coordinator publishes the membership anew when nothing happens for so long;
            None: it does not.
    """

    def __init__(self, directory: Path, dp: int = 1) -> None:
        self.endpoint = f"ipc://{directory}/coordinator"
        self.engines = {rank: FakeEngine(rank) for rank in range(dp)}
        self.state = DeploymentState.serving
        self.frontend_state = ProcessState.starting
        self.answer: bytes | None = b"Hello world"
        self.is_silent = False
        self.repeat_ms: int | None = None
        self.plan: Any = {"name": "test"}
        self._seen = Seen()
        self._epoch = 0
        self._changed = threading.Condition()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._is_running = True
        self._thread = threading.Thread(target=self._run, name="fake-deployment")

    # What tests do.

    def __enter__(self) -> "FakeDeployment":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(lambda: setattr(self, "_is_running", False))
        self._thread.join()
        os.close(self._wake)

    def wait(self, found: Callable[[Seen], T]) -> T:
        """What `found` makes of what has been seen, as soon as it is true."""
        with self._changed:
            result = self._changed.wait_for(lambda: found(self._seen), DEADLINE_S)
            assert result, f"not seen: {self._seen}"
            return result

    def wait_for_request(self, number: int = 0) -> tuple[int, AddRequest]:
        """The rank and the request that came as the `number`th."""
        return self.wait(lambda seen: seen.added[number : number + 1])[0]

    def publish(self) -> None:
        """Publishes the membership as it is now."""
        self._do(self._publish)

    def set_rank(self, rank: int, state: ProcessState, reason: str = "") -> None:
        def change() -> None:
            self.engines[rank].state, self.engines[rank].reason = state, reason
            self._publish()

        self._do(change)

    def replace(self, rank: int) -> None:
        """The rank is started anew, ready at once."""

        def change() -> None:
            old = self.engines[rank]
            old.disconnect()
            self.engines[rank] = FakeEngine(rank, old.incarnation + 1)
            self._publish()

        self._do(change)

    def publish_loads(self, *loads: RankLoad) -> None:
        self._do(lambda: self._send_to_all(LOADS_TOPIC, Loads(self._epoch, list(loads))))

    def publish_metrics(self, *reports: MetricsReport) -> None:
        self._do(lambda: self._send_to_all(METRICS_TOPIC, MetricsSnapshot(list(reports))))

    def drain(self) -> None:
        self.state = DeploymentState.draining
        self.publish()

    def output(
        self,
        rank: int,
        request_id: int,
        tokens: bytes | list[int] = b"",
        finish_reason: FinishReason | None = None,
        **fields: Any,
    ) -> None:
        """Sends one step's output of one request."""
        output = RequestOutput(request_id, list(tokens), finish_reason, **fields)
        self._do(lambda: self.engines[rank].send([output]))

    def lose_outputs(self, rank: int) -> None:
        """The rank sends a message that never arrives."""
        self._do(lambda: setattr(self.engines[rank], "num_sent", self.engines[rank].num_sent + 1))

    def lose(self, rank: int, kind: type[AddRequest | AbortRequests]) -> None:
        """The next message of this kind to the rank, but for probes, never arrives."""

        def is_it(message: AddRequest | AbortRequests) -> bool:
            return isinstance(message, kind) and not _is_probe(message)

        self._do(lambda: setattr(self.engines[rank], "is_deaf_to", is_it))

    def tell_lost(self, rank: int, first: int, last: int) -> None:
        self._do(lambda: self.engines[rank].send([], lost=(first, last)))

    def send_as(self, rank: int, incarnation: int, request_id: int, tokens: bytes) -> None:
        """Words of an incarnation that may be gone."""
        output = RequestOutput(request_id, list(tokens))
        message = EngineOutputs(rank, incarnation, 0, -1, [output])
        self._do(lambda: self.engines[rank].send_message(message))

    # The thread.

    def _do(self, call: Callable[[], None]) -> None:
        self._calls.put(call)
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        self._context = zmq.Context()
        self._inbox, _ = transport.bind(self._context, zmq.ROUTER, self.endpoint)
        publish = transport.sibling_endpoint(self.endpoint, "membership")
        self._members, self._publish_endpoint = transport.bind(self._context, zmq.XPUB, publish)
        while self._is_running:
            self._wait_for_something()
        for engine in self.engines.values():
            engine.disconnect()
        self._inbox.close()
        self._members.close()
        self._context.term()

    def _wait_for_something(self) -> None:
        poller = zmq.Poller()
        engines = [engine for engine in self.engines.values() if engine.requests is not None]
        for source in (self._wake, self._inbox, self._members, *(e.requests for e in engines)):
            poller.register(source, zmq.POLLIN)
        ready = dict(poller.poll(self.repeat_ms))
        if not ready:
            self._publish()
        if self._wake in ready:
            os.eventfd_read(self._wake)
            while not self._calls.empty():
                self._calls.get()()
        if self._inbox in ready:
            self._coordinate()
        if self._members in ready:
            self._members.recv()
            self._publish()
        for engine in engines:
            if engine.requests in ready:
                self._work(engine)

    def _coordinate(self) -> None:
        sender, frame = self._inbox.recv_multipart()
        match TO_COORDINATOR.decode(frame):
            case Register() as hello:
                self._note(lambda seen: setattr(seen, "frontend", hello))
                transport.send(self._inbox, Registered(self._publish_endpoint), sender)
            case PhaseEntered(_, _, phase):
                if phase is Phase.ready:
                    self.frontend_state = ProcessState.ready
                self._note(lambda seen: seen.phases.append(phase))
                self._publish()
            case Drained() as drained:
                self.frontend_state = ProcessState.drained
                self._note(lambda seen: seen.drained.append(drained))
            case GetPlan(call_id) if not self.is_silent:
                members = [engine.member() for engine in self.engines.values()]
                answer = PlanAnswer(call_id, self.plan, members, ["something differs"])
                transport.send(self._inbox, answer, sender)
            case MetricsReport() as report:
                self._note(lambda seen: seen.metrics.append(report))
            case Heartbeat() as beat:
                self._note(lambda seen: seen.heartbeats.append(beat))
            case GetPlan():
                pass

    def _publish(self) -> None:
        self._epoch += 1
        hello = self._seen.frontend
        members = [engine.member() for engine in self.engines.values()]
        if hello is not None:
            members.append(self._frontend_member(hello))
            for engine in self.engines.values():
                engine.connect(self._context, hello)
        membership = Membership(self._epoch, self.state, members, [], [])
        self._send_to_all(MEMBERSHIP_TOPIC, membership)

    def _send_to_all(self, topic: bytes, message: Message) -> None:
        transport.send(self._members, message, topic)

    def _frontend_member(self, hello: Register) -> Member:
        return Member(
            name=hello.name,
            role=hello.role,
            rank=None,
            incarnation=hello.incarnation,
            node=hello.node,
            pid=hello.pid,
            devices=[],
            state=self.frontend_state,
            phase=Phase.ready,
            since_s=0.0,
            endpoints=hello.endpoints,
        )

    def _work(self, engine: FakeEngine) -> None:
        message = engine.receive()
        match message:
            case None:
                pass
            case AddRequest():
                self._note(lambda seen: seen.added.append((engine.rank, message)))
                if self.answer is not None:
                    engine.answer(message, self.answer)
            case AbortRequests(_, request_ids, stopped):
                if _is_probe(message):
                    engine.send([])
                aborted = [(engine.rank, request_id) for request_id in request_ids]
                self._note(lambda seen: seen.stopped.extend(stopped))
                self._note(lambda seen: seen.aborted.extend(aborted))

    def _note(self, change: Callable[[Seen], object]) -> None:
        with self._changed:
            change(self._seen)
            self._changed.notify_all()


def _is_probe(message: AddRequest | AbortRequests) -> bool:
    return isinstance(message, AbortRequests) and not message.request_ids


class FakeLifeline:
    """Ends when the test says so, and never ends the test's own process."""

    def __init__(self) -> None:
        self._on_end: Callable[[], None] = lambda: None

    def watch(self, on_end: Callable[[], None], grace_s: float) -> None:
        self._on_end = on_end

    def end(self) -> None:
        self._on_end()
