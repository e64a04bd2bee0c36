"""The front end's side of the sockets to the engine cores."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence

import zmq

from engine import transport
from engine.config import BalancerPolicy
from engine.errors import ProtocolError
from engine.frontend import load_balancer
from engine.frontend.errors import Unavailable
from engine.frontend.generation import Generation
from engine.frontend.in_flight import Engine, InFlight
from engine.protocol import (
    ENGINE_OUTPUTS,
    AbortRequests,
    AddRequest,
    EngineOutputs,
    Member,
    ProcessState,
)
from engine.sampling import SamplingParams

logger = logging.getLogger(__name__)

GREETING_INTERVAL_S = 0.02
"""Between two tries to reach an engine that has registered and is about to connect."""


class EngineClient:
    """Sends requests to the engines and hands their outputs to whoever waits for them.

    Belongs to one event loop, from `start` on.

    Args:
        requests: Bound ROUTER to the engines.
        outputs: Bound PULL from the engines.
        silence_s: After this, an engine that has not said that it has a request is asked.
    """

    def __init__(
        self,
        requests: zmq.Socket[bytes],
        outputs: zmq.Socket[bytes],
        policy: BalancerPolicy,
        silence_s: float,
    ) -> None:
        self._requests = requests
        self._outputs = outputs
        self._policy = policy
        self._silence_s = silence_s
        self._in_flight = InFlight()
        self._request_ids = itertools.count()
        self._last_rank = -1
        self._greetings: dict[Engine, asyncio.TimerHandle] = {}

    def start(self, on_reached: Callable[[], None]) -> None:
        """Listens to the engines, in the running loop.

        Args:
            on_reached: Called when an engine can be sent requests.
        """
        self._on_reached = on_reached
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._outputs.fileno(), self._receive)
        self._receive()  # the descriptor tells only of what comes from now on

    def apply(self, members: Sequence[Member]) -> None:
        """Takes over who is there; requests at engines that are gone fail at once.

        The coordinator publishes at least twice a second, so this is also where lost requests are
        looked for.
        """
        self._in_flight.apply(members)
        for engine in self._in_flight.engines.values():
            if engine.state is ProcessState.ready and not engine.is_reachable:
                self._greet(engine)
            elif engine.has_unheard and self._loop.time() - engine.sent_s > self._silence_s:
                # If the last message was lost, no later one shows the gap: this one does. An engine
                # that is only slow has nothing to do for it.
                self._send(engine, AbortRequests(engine.next_sequence, []))

    @property
    def connected_ranks(self) -> set[int]:
        engines = self._in_flight.engines.values()
        return {engine.rank for engine in engines if engine.is_reachable}

    def submit(self, prompt_token_ids: list[int], sampling: SamplingParams) -> Generation:
        """Sends a request to the rank with the least work.

        Raises:
            Unavailable: No rank takes it.
        """
        request_id = next(self._request_ids)
        while work := self._in_flight.work():
            rank = load_balancer.choose(self._policy, work, self._last_rank)
            engine = self._in_flight.engines[rank]
            request = AddRequest(engine.next_sequence, request_id, prompt_token_ids, sampling)
            if self._send(engine, request):
                self._last_rank = rank
                return self._in_flight.add(engine, request, self._end)
        raise Unavailable("No rank is ready for requests; see /ready.", code="no_rank_ready")

    def end(self, reason: str) -> None:
        """Fails every request; nobody is asked any more."""
        for engine in self._in_flight.engines.values():
            self._abort(engine, self._in_flight.end(engine, reason))
        self._in_flight.apply([])

    def close(self) -> None:
        """Stops listening; the sockets stay open."""
        self._loop.remove_reader(self._outputs.fileno())
        for timer in self._greetings.values():
            timer.cancel()

    def _receive(self) -> None:
        while True:
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

    def _take(self, outputs: EngineOutputs) -> None:
        try:
            failed = self._in_flight.receive(outputs)
        except Exception:  # a defect; what waits in the queue must be read all the same
            logger.exception("outputs of rank %s could not be taken", outputs.rank)
            failed = self._in_flight.fail(
                self._in_flight.engines[outputs.rank], "its outputs could not be taken"
            )
        if failed:
            self._abort(self._in_flight.engines[outputs.rank], failed)

    def _end(self, generation: Generation) -> None:
        engine = self._in_flight.remove(generation)
        if engine is not None:
            self._abort(engine, [generation])

    def _abort(self, engine: Engine, generations: Sequence[Generation]) -> None:
        if generations and engine.is_reachable:
            request_ids = [generation.request_id for generation in generations]
            self._send(engine, AbortRequests(engine.next_sequence, request_ids))

    def _greet(self, engine: Engine) -> None:
        """Tries to reach an engine until it has connected, with a message that asks for nothing."""
        timer = self._greetings.pop(engine, None)
        if timer is not None:
            timer.cancel()
        is_current = self._in_flight.engines.get(engine.rank) is engine
        if is_current and engine.state is ProcessState.ready:
            self._send(engine, AbortRequests(engine.next_sequence, []))

    def _send(self, engine: Engine, message: AddRequest | AbortRequests) -> bool:
        try:
            transport.send(self._requests, message, engine.identity)
        except zmq.ZMQError as problem:  # not connected, or its queue is full
            if engine.is_reachable:
                logger.warning("rank %s cannot be reached: %s", engine.rank, problem)
            engine.is_reachable = False
            timer = self._loop.call_later(GREETING_INTERVAL_S, self._greet, engine)
            self._greetings[engine] = timer
            return False
        engine.next_sequence += 1
        engine.sent_s = self._loop.time()
        if not engine.is_reachable:
            engine.is_reachable = True
            self._on_reached()
        return True
