"""The requests that a front end has at each engine: bookkeeping without sockets.

Gaps in the numbers of messages show what ZMQ dropped. What a dropped message was about fails at
once and is never waited for.
"""

import logging
import math
from collections.abc import Callable, Iterable
from itertools import takewhile

from engine.frontend.engine import Engine
from engine.frontend.errors import ApiError, Draining, EngineFailed, Unavailable
from engine.frontend.generation import Generation
from engine.frontend.load_balancer import RankWork
from engine.frontend.readiness import engines_of
from engine.metrics import LOST_MESSAGES, Metrics
from engine.protocol import (
    AddRequest,
    EngineOutputs,
    FinishReason,
    Loads,
    Member,
    ProcessState,
    RequestOutput,
)
from engine.wording import counted

logger = logging.getLogger(__name__)


class InFlight:
    """All engines, and what each works on."""

    def __init__(self, metrics: Metrics) -> None:
        self.engines: dict[int, Engine] = {}
        self._metrics = metrics
        self._candidates: list[RankWork] | None = None

    def apply(self, members: Iterable[Member]) -> None:
        """Takes over who is there. Requests at engines that are lost, gone or replaced fail."""
        members_by_rank = engines_of(members)
        self._candidates = None
        for rank in self.engines.keys() - members_by_rank.keys():
            self.fail(self.engines.pop(rank), "it has left the deployment")
        for rank, member in members_by_rank.items():
            engine = self.engines.get(rank)
            if engine is None or engine.incarnation != member.incarnation:
                if engine is not None:
                    self.fail(engine, "it was started anew")
                engine = self.engines[rank] = Engine(rank, member.incarnation)
            engine.state, engine.reason = member.state, member.reason
            if member.state is ProcessState.lost:
                self.fail(engine, member.reason)

    def apply_loads(self, loads: Loads, now_s: float) -> None:
        """Takes over what the ranks report, all of them."""
        silent = self.engines.keys() - {load.rank for load in loads.ranks}
        for rank in silent:
            _forget_load(self.engines[rank])
        for load in loads.ranks:
            engine = self.engines.get(load.rank)
            if engine is None or engine.incarnation != load.incarnation:
                continue
            # What was sent during the step before the report may not be in it.
            engine.report_s = now_s - load.age_s - load.step_s
            engine.work.reported = load.waiting_tokens + load.output_tokens
            engine.work.unreported = sum(
                each.work
                for each in takewhile(engine.is_unreported, reversed(engine.generations.values()))
            )

    def forget_loads(self) -> None:
        """Nobody reports any more: the own requests alone count."""
        for engine in self.engines.values():
            _forget_load(engine)

    def set_reachable(self, engine: Engine, is_reachable: bool, is_full: bool) -> None:
        if (engine.is_reachable, engine.is_full) != (is_reachable, is_full):
            engine.is_reachable, engine.is_full = is_reachable, is_full
            self._candidates = None
        if not is_reachable:
            engine.asked_s = None  # what it was asked is lost; it is greeted anew
            self._set_connected(engine, False)

    def _set_connected(self, engine: Engine, is_connected: bool) -> None:
        if engine.is_connected != is_connected:
            engine.is_connected = is_connected
            self._candidates = None

    @property
    def num_queued(self) -> int:
        """Requests for which nothing has come yet."""
        return sum(engine.num_queued for engine in self.engines.values())

    def candidates(self) -> list[RankWork]:
        """The ranks that take new requests, in ascending order."""
        if self._candidates is None:
            takers = [engine.work for engine in self.engines.values() if engine.takes_work]
            self._candidates = sorted(takers, key=lambda work: work.rank)
        return self._candidates

    def add(
        self,
        engine: Engine,
        request: AddRequest,
        on_close: Callable[[Generation, FinishReason], None],
        now_s: float,
    ) -> Generation:
        """Notes a request that was sent to an engine."""
        generation = Generation(engine.rank, request, on_close, now_s)
        engine.num_queued += 1
        engine.generations[request.request_id] = generation
        engine.change_work(generation, generation.work)
        return generation

    def remove(self, generation: Generation, reason: FinishReason) -> Engine | None:
        """Forgets a request; the engine that still works on it and shall give it up, or None."""
        engine = self.engines.get(generation.rank)
        if engine is None or engine.generations.get(generation.request_id) is not generation:
            return None
        _drop(engine, generation)
        engine.abort(generation.request_id, reason)
        return engine

    def receive(self, outputs: EngineOutputs, now_s: float) -> None:
        """Hands a step's outputs to their requests; notes what the engine shall give up."""
        engine = self.engines.get(outputs.rank)
        if engine is None or engine.incarnation != outputs.incarnation:
            return  # late words of an engine that is no more
        engine.heard_s, engine.asked_s = now_s, None
        self._set_connected(engine, engine.is_reachable)
        expected, engine.expected = engine.expected, outputs.sequence + 1
        engine.acknowledge(outputs.acknowledged, outputs.lost)
        if outputs.sequence != expected:
            num_lost = outputs.sequence - expected
            self._metrics.add(LOST_MESSAGES, num_lost, (f"engine-{engine.rank}",))
            problem = f"outputs {expected} to {outputs.sequence - 1} were lost"
            logger.error("engine %s.%s: %s", engine.rank, engine.incarnation, problem)
            self.fail(engine, problem)
            return
        if outputs.lost is not None:
            self._fail_unheard(engine, *outputs.lost)
        for output in outputs.outputs:
            generation = engine.generations.get(output.request_id)
            if generation is not None:
                _deliver(engine, generation, output)
            elif output.finish_reason is None:  # nobody wants it: it does not know, or not yet
                engine.abort(output.request_id, FinishReason.abort)

    def fail(self, engine: Engine, reason: str) -> None:
        """Fails all requests of an engine, which shall give them up."""
        failed = list(engine.generations.values())
        for generation in failed:
            _fail(engine, generation, reason)
            engine.abort(generation.request_id, FinishReason.abort)
        if failed:
            requests = counted(len(failed), "request")
            logger.warning("failed %s of rank %s: %s", requests, engine.rank, reason)

    def fail_overdue(self, now_s: float, suspect_s: float, is_informed: bool = True) -> None:
        """Fails the requests of engines that have been silent and not known to be well for so long.

        One that leaves a question unanswered for so long, or until its requests fail, is no longer
        connected. To be called often: it also notes which engines are well.

        Args:
            is_informed: The coordinator speaks; else what it said last is not believed.
        """
        for engine in self.engines.values():
            is_well = engine.state is ProcessState.ready and engine.is_reachable
            if is_informed and is_well and engine.asked_s is None:
                engine.trusted_s = now_s
            is_overdue = engine.is_overdue(now_s, suspect_s)
            owes_answer = engine.asked_s is not None
            if engine.is_unanswering(now_s, suspect_s) or (is_overdue and owes_answer):
                self._set_connected(engine, False)
            if is_overdue:
                if engine.reason:
                    reason = engine.reason
                elif not engine.is_reachable:
                    reason = "not connected to this front end"
                elif is_informed:
                    reason = "does not answer this front end"
                else:
                    reason = "silent, and so is the coordinator"
                self.fail(engine, f"{reason}; given up after health.suspect_s ({suspect_s:g} s)")

    def end(self, engine: Engine, reason: str) -> None:
        """Fails all requests of an engine, which shall give them up, because this process ends."""
        for generation in list(engine.generations.values()):
            message = f"This server ends before the answer was complete: {reason}."
            _fail_with(engine, generation, Draining(message, code="draining"))
            engine.abort(generation.request_id, FinishReason.abort)

    def _fail_unheard(self, engine: Engine, first: int, last: int) -> None:
        logger.error(
            "engine %s.%s: messages %s to %s never arrived there",
            *(engine.rank, engine.incarnation, first, last),
        )
        for generation in list(engine.generations.values()):
            if first <= generation.sequence <= last:
                _fail(engine, generation, "the request never arrived there")


def _deliver(engine: Engine, generation: Generation, output: RequestOutput) -> None:
    match output.finish_reason:
        case FinishReason.error:
            message = output.error or "the engine failed"
            _fail_with(engine, generation, EngineFailed(message, code="engine_failed"))
        case FinishReason.abort:
            _fail(engine, generation, "the engine gave up the request")
        case FinishReason.stop | FinishReason.length:
            _drop(engine, generation)
            generation.deliver(output)
        case None:
            before = generation.work
            engine.num_queued -= generation.is_queued
            generation.deliver(output)
            engine.change_work(generation, generation.work - before)


def _fail(engine: Engine, generation: Generation, reason: str) -> None:
    problem = Unavailable(f"Rank {engine.rank} failed: {reason}", code="rank_failed")
    _fail_with(engine, generation, problem)


def _fail_with(engine: Engine, generation: Generation, problem: ApiError) -> None:
    _drop(engine, generation)
    generation.fail(problem)


def _drop(engine: Engine, generation: Generation) -> None:
    del engine.generations[generation.request_id]
    engine.num_queued -= generation.is_queued
    engine.change_work(generation, -generation.work)


def _forget_load(engine: Engine) -> None:
    engine.report_s = -math.inf
    engine.work.reported = 0
    engine.work.unreported = engine.work.own
