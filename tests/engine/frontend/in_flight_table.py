"""Requests in flight at two ranks, without sockets, and words to tell a story of them."""

import pytest

from engine.config import Role
from engine.frontend.engine import Engine
from engine.frontend.errors import ApiError
from engine.frontend.generation import Generation
from engine.frontend.in_flight import InFlight
from engine.metrics import Metrics
from engine.protocol import (
    AddRequest,
    EngineOutputs,
    FinishReason,
    Member,
    Phase,
    ProcessState,
    RankLoad,
    RequestOutput,
)
from engine.sampling import SamplingParams

READY, LOST, SUSPECT = ProcessState.ready, ProcessState.lost, ProcessState.suspect


def member(
    rank: int, incarnation: int = 0, state: ProcessState = READY, reason: str = ""
) -> Member:
    return Member(
        name=f"engine-{rank}",
        role=Role.engine,
        rank=rank,
        incarnation=incarnation,
        node="head",
        pid=1,
        devices=[],
        state=state,
        phase=Phase.ready,
        since_s=0.0,
        reason=reason,
    )


def load(
    rank: int,
    *,
    incarnation: int = 0,
    waiting_tokens: int = 0,
    output_tokens: int = 0,
    step_s: float = 0.0,
    age_s: float = 0.0,
) -> RankLoad:
    return RankLoad(rank, incarnation, 0, 0, waiting_tokens, output_tokens, 0.0, step_s, age_s)


def outputs(
    rank: int,
    sequence: int,
    *tokens: tuple[int, int],
    incarnation: int = 0,
    lost: tuple[int, int] | None = None,
    acknowledged: int = -1,
) -> EngineOutputs:
    """One token for each (request id, token)."""
    produced = [RequestOutput(request_id, [token]) for request_id, token in tokens]
    return EngineOutputs(rank, incarnation, sequence, acknowledged, produced, lost)


class Table:
    """Ranks 0 and 1, both connected, with helpers to tell a story."""

    def __init__(self) -> None:
        self.metrics = Metrics(Role.frontend)
        self.in_flight = InFlight(self.metrics)
        self.in_flight.apply([member(0), member(1)])
        for engine in self.in_flight.engines.values():
            self.in_flight.set_reachable(engine, is_reachable=True, is_full=False)
            engine.is_connected = True
        self.closed: list[tuple[Generation, FinishReason]] = []

    def add(
        self, rank: int, request_id: int, num_prompt_tokens: int = 4, now_s: float = 0.0
    ) -> Generation:
        engine = self.in_flight.engines[rank]
        prompt, sampling = [0] * num_prompt_tokens, SamplingParams(max_tokens=10)
        request = AddRequest(engine.next_sequence, request_id, prompt, sampling)
        engine.next_sequence += 1
        return self.in_flight.add(
            engine, request, lambda *closed: self.closed.append(closed), now_s
        )

    def receive(self, outputs: EngineOutputs, now_s: float = 0.0) -> None:
        self.in_flight.receive(outputs, now_s)

    def remove(self, generation: Generation) -> Engine | None:
        return self.in_flight.remove(generation, FinishReason.abort)

    def aborts(self, rank: int) -> list[int]:
        """Requests that the rank shall be told to give up; it is told, with its next message."""
        engine = self.in_flight.engines[rank]
        aborts = list(engine.unsent_aborts)
        engine.note_aborts_sent(engine.next_sequence)
        engine.next_sequence += 1
        return aborts

    @property
    def work(self) -> dict[int, int]:
        return {each.rank: each.own for each in self.in_flight.candidates()}


async def problem_of(generation: Generation) -> ApiError:
    with pytest.raises(ApiError) as caught:
        generation.take()
    return caught.value


async def tokens_of(generation: Generation) -> list[int]:
    return [token for output in generation.take() for token in output.token_ids]
