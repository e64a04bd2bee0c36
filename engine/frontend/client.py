"""The front end's side of the sockets to the engine cores."""

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Sequence

import zmq

from engine import transport
from engine.config import BalancerPolicy, HealthOptions
from engine.errors import ProtocolError
from engine.frontend import load_balancer
from engine.frontend.engine import Engine
from engine.frontend.errors import Overloaded, Unavailable
from engine.frontend.generation import Generation
from engine.frontend.in_flight import InFlight
from engine.frontend.load_balancer import Decision, Reason
from engine.metrics import BALANCER_DECISIONS, Metrics
from engine.protocol import (
    ENGINE_OUTPUTS,
    AbortRequests,
    AddRequest,
    EngineOutputs,
    FinishReason,
    Loads,
    Member,
    ProcessState,
)
from engine.sampling import SamplingParams

logger = logging.getLogger(__name__)

MAX_MESSAGES_PER_TURN = 16
"""Taken from the engines before what they hold is sent on: a fast engine must not hold it up."""
GREETING_INTERVAL_S = 0.02
"""Between two tries to reach an engine that has registered and is about to connect."""


class EngineClient:
    """Sends requests to the engines and hands their outputs to whoever waits for them.

    Belongs to one event loop, from `start` on.

    Args:
        requests: Bound ROUTER to the engines.
        outputs: Bound PULL from the engines.
        health: After `silence_s` an engine that owes an answer and says nothing is asked, and loads
            are forgotten when the coordinator says nothing; after `suspect_s` the requests of a
            suspect engine fail.
        first_rank: Where taking turns begins; front ends that begin at different ranks do not meet.

    Attributes:
        heard_s: When the coordinator last said something, on the loop's clock.
    """

    def __init__(
        self,
        requests: zmq.Socket[bytes],
        outputs: zmq.Socket[bytes],
        policy: BalancerPolicy,
        health: HealthOptions,
        metrics: Metrics,
        first_rank: int = 0,
    ) -> None:
        self._requests = requests
        self._outputs = outputs
        self._policy = policy
        self._silence_s, self._suspect_s = health.silence_s, health.suspect_s
        self._in_flight = InFlight(metrics)
        self._metrics = metrics
        self._request_ids = itertools.count()
        self._last_rank = first_rank - 1
        self._greetings: dict[Engine, asyncio.TimerHandle] = {}
        self._next_turn: asyncio.Handle | None = None
        self._next_look: asyncio.Handle | None = None

    def start(self, on_reached: Callable[[], None]) -> None:
        """Listens to the engines, in the running loop.

        Args:
            on_reached: Called when an engine has connected.
        """
        self._on_reached = on_reached
        self._loop = asyncio.get_running_loop()
        self.heard_s = self._looked_s = self._loop.time()
        self._loop.add_reader(self._outputs.fileno(), self._receive)
        self._receive()  # the descriptor tells only of what comes from now on
        self._look()

    def apply(self, members: Sequence[Member]) -> None:
        """Takes over who is there; requests at engines that are gone fail at once."""
        self.heard_s = self._loop.time()
        self._in_flight.apply(members)
        for engine in self._in_flight.engines.values():
            if engine.state is ProcessState.ready and (not engine.is_reachable or engine.is_full):
                self._greet(engine)

    def apply_loads(self, loads: Loads) -> None:
        """Takes over what every rank has to do."""
        self.heard_s = self._loop.time()
        self._in_flight.apply_loads(loads, self.heard_s)

    @property
    def connected_ranks(self) -> set[int]:
        """Those that can be sent messages and have answered."""
        engines = self._in_flight.engines.values()
        return {engine.rank for engine in engines if engine.is_connected}

    @property
    def num_queued(self) -> int:
        """Requests that wait for their first token."""
        return self._in_flight.num_queued

    def submit(
        self,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        pinned: int | None = None,
        external_id: str = "",
    ) -> Generation:
        """Sends a request to the rank that the load balancer chooses.

        Args:
            pinned: The rank that the client wants; no other takes the request.
            external_id: What the log lines of the engine core call it.

        Raises:
            Unavailable: No rank takes it, or not the pinned one.
        """
        now_s = self._loop.time()
        if now_s - self.heard_s > self._silence_s:
            self._in_flight.forget_loads()
        request_id = next(self._request_ids)
        while decision := self._choose(pinned):
            engine = self._in_flight.engines[decision.rank]
            request = AddRequest(
                engine.next_sequence, request_id, prompt_token_ids, sampling, external_id
            )
            if self._send(engine, request):
                labels = (self._policy.value, decision.reason.value)
                self._metrics.add(BALANCER_DECISIONS, labels=labels)
                if pinned is None:
                    self._last_rank = decision.rank
                return self._in_flight.add(engine, request, self._end, now_s)
        raise self._no_rank(pinned)

    def _choose(self, pinned: int | None) -> Decision | None:
        if pinned is not None:
            engine = self._in_flight.engines.get(pinned)
            is_taken = engine is not None and engine.takes_work
            return Decision(pinned, Reason.pinned) if is_taken else None
        candidates = self._in_flight.candidates()
        if not candidates:
            return None
        number = random.getrandbits(64)
        return load_balancer.choose(self._policy, candidates, self._last_rank, number)

    def _no_rank(self, pinned: int | None) -> Unavailable:
        """Why nobody takes a request."""
        engines = self._in_flight.engines
        if pinned is not None:
            engine = engines.get(pinned)
            if engine is None:
                state = "unknown: it has not registered"
            elif engine.is_full:
                return Overloaded(f"The queue of rank {pinned} is full.")
            elif engine.state is ProcessState.ready:
                state = "not connected to this front end"
            else:
                state = engine.state.value + (f": {engine.reason}" if engine.reason else "")
            return Unavailable(f"Rank {pinned} is {state}.", code="rank_not_ready")
        if any(engine.is_full for engine in engines.values()):
            return Overloaded("The queues of all ranks are full.")
        return Unavailable("No rank is ready for requests; see /ready.", code="no_rank_ready")

    def end(self, reason: str) -> None:
        """Fails every request; nobody is asked any more."""
        for engine in self._in_flight.engines.values():
            self._in_flight.end(engine, reason)
            self._tell_aborts(engine)
        self._in_flight.apply([])

    def close(self) -> None:
        """Stops listening; the sockets stay open."""
        self._loop.remove_reader(self._outputs.fileno())
        for timer in (self._next_turn, self._next_look, *self._greetings.values()):
            if timer is not None:
                timer.cancel()

    def _look(self) -> None:
        """Finds what was lost without a trace, and who has been waited for too long."""
        now_s = self._loop.time()
        interval_s = min(self._silence_s, self._suspect_s) / 2
        if now_s - self._looked_s < 2 * interval_s:  # else it slept: what came meanwhile is unread
            is_informed = now_s - self.heard_s <= self._silence_s
            self._in_flight.fail_overdue(now_s, self._suspect_s, is_informed)
        self._looked_s = now_s
        for engine in list(self._in_flight.engines.values()):
            self._tell_aborts(engine)
            if engine.needs_probe(now_s, self._silence_s):
                self._probe(engine)
        self._next_look = self._loop.call_later(interval_s, self._look)

    def _receive(self) -> None:
        for _ in range(MAX_MESSAGES_PER_TURN):
            try:
                frame = self._outputs.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                outputs = transport.decode(ENGINE_OUTPUTS, frame, "an engine core")
            except ProtocolError:
                logger.exception("outputs ignored")
                continue
            self._take(outputs)
        self._next_turn = self._loop.call_soon(self._receive)

    def _take(self, outputs: EngineOutputs) -> None:
        engine = self._in_flight.engines.get(outputs.rank)
        if engine is None:
            return
        was_connected = engine.is_connected
        try:
            self._in_flight.receive(outputs, self._loop.time())
        except Exception:  # a defect; what waits in the queue must be read all the same
            logger.exception("outputs of rank %s could not be taken", outputs.rank)
            self._in_flight.fail(engine, "its outputs could not be taken")
        self._tell_aborts(engine)
        if engine.is_connected and not was_connected:
            self._on_reached()

    def _end(self, generation: Generation, reason: FinishReason) -> None:
        engine = self._in_flight.remove(generation, reason)
        if engine is not None:
            self._tell_aborts(engine)

    def _tell_aborts(self, engine: Engine) -> None:
        """Tells an engine which requests to give up; if it cannot be told now, it will be later."""
        is_there = engine.is_reachable and engine.state is not ProcessState.lost
        if not engine.unsent_aborts or not is_there or engine.is_full:
            return
        aborts = engine.unsent_aborts
        stopped = [each for each, reason in aborts.items() if reason is FinishReason.stop]
        message = AbortRequests(engine.next_sequence, list(aborts), stopped)
        if self._send(engine, message):
            engine.note_aborts_sent(message.sequence)

    def _greet(self, engine: Engine) -> None:
        """Tries to reach an engine until it can be sent messages; the answer makes it connected."""
        timer = self._greetings.pop(engine, None)
        if timer is not None:
            timer.cancel()
        is_current = self._in_flight.engines.get(engine.rank) is engine
        if is_current and engine.state is ProcessState.ready and self._probe(engine):
            self._tell_aborts(engine)

    def _probe(self, engine: Engine) -> bool:
        """Asks an engine for what may have been lost; whether it could be sent that."""
        is_sent = self._send(engine, AbortRequests(engine.next_sequence, []))
        if is_sent:
            engine.note_probe(self._loop.time())
        return is_sent

    def _send(self, engine: Engine, message: AddRequest | AbortRequests) -> bool:
        try:
            transport.send(self._requests, message, engine.identity)
        except zmq.ZMQError as problem:  # not connected, or its queue is full
            is_full = isinstance(problem, zmq.Again)
            if engine.is_reachable and not (is_full and engine.is_full):
                logger.warning("rank %s cannot be reached: %s", engine.rank, problem)
            is_reachable = engine.is_reachable and is_full
            self._in_flight.set_reachable(engine, is_reachable, is_full)
            timer = self._loop.call_later(GREETING_INTERVAL_S, self._greet, engine)
            self._greetings[engine] = timer
            return False
        engine.next_sequence += 1
        engine.sent_s = self._loop.time()
        self._in_flight.set_reachable(engine, is_reachable=True, is_full=False)
        return True
