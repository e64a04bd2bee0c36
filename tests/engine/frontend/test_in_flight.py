import random
from collections.abc import Callable

import pytest

from engine.config import Role
from engine.frontend.engine import Engine
from engine.frontend.errors import ApiError, EngineFailed, Unavailable
from engine.frontend.generation import Generation
from engine.frontend.in_flight import InFlight
from engine.frontend.load_balancer import work_of
from engine.metrics import LOST_MESSAGES, Metrics
from engine.protocol import (
    AddRequest,
    EngineOutputs,
    FinishReason,
    Loads,
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
    """Ranks 0 and 1, both reachable, with helpers to tell a story."""

    def __init__(self) -> None:
        self.metrics = Metrics(Role.frontend)
        self.in_flight = InFlight(self.metrics)
        self.in_flight.apply([member(0), member(1)])
        for engine in self.in_flight.engines.values():
            self.in_flight.set_reachable(engine, is_reachable=True, is_full=False)
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
        aborts, engine.unsent_aborts = engine.unsent_aborts, {}
        engine.sent_aborts[engine.next_sequence] = aborts
        engine.next_sequence += 1
        return list(aborts)

    @property
    def work(self) -> dict[int, int]:
        return {each.rank: each.own for each in self.in_flight.candidates()}


@pytest.fixture
def table() -> Table:
    return Table()


async def problem_of(generation: Generation) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await generation.take()
    return caught.value


async def tokens_of(generation: Generation) -> list[int]:
    return [token for output in await generation.take() for token in output.token_ids]


async def test_outputs_reach_their_requests(table: Table):
    one, two = table.add(0, 1), table.add(1, 2)
    table.receive(outputs(0, 0, (1, 65)))
    table.receive(outputs(0, 1, (1, 66)))
    table.receive(outputs(1, 0, (2, 67)))
    assert await tokens_of(one) == [65, 66]  # all that came since
    assert await tokens_of(two) == [67]


async def test_a_lost_rank_fails_its_requests_only(table: Table):
    one, two = table.add(0, 1), table.add(1, 2)
    table.in_flight.apply([member(0, state=LOST, reason="killed by signal 9"), member(1)])
    problem = await problem_of(one)
    assert isinstance(problem, Unavailable)
    assert problem.message == "Rank 0 failed: killed by signal 9"
    table.receive(outputs(1, 0, (2, 67)))
    assert await tokens_of(two) == [67]
    assert table.work == {1: two.work}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member(1)], "it has left the deployment"),
        ([member(0, incarnation=1), member(1)], "it was started anew"),
        ([member(0, state=LOST), member(0, incarnation=1), member(1)], "it was started anew"),
    ],
)
async def test_requests_of_a_rank_that_is_gone_or_replaced_fail(table: Table, members, reason):
    one = table.add(0, 1)
    table.in_flight.apply(members)
    assert (await problem_of(one)).message == f"Rank 0 failed: {reason}"


async def test_a_new_incarnation_begins_its_numbers_anew(table: Table):
    table.add(0, 1)
    table.in_flight.apply([member(0, incarnation=1), member(1)])
    one = table.add(0, 2)
    assert one.sequence == 0
    table.receive(outputs(0, 0, (2, 65), incarnation=1))
    assert await tokens_of(one) == [65]


async def test_late_words_of_an_old_incarnation_are_ignored(table: Table):
    table.in_flight.apply([member(0, incarnation=1), member(1)])
    one = table.add(0, 1)
    table.receive(outputs(0, 7, (1, 66), incarnation=0))
    table.receive(outputs(0, 0, (1, 65), incarnation=1))
    assert await tokens_of(one) == [65]


async def test_a_gap_in_the_outputs_fails_all_requests_of_the_rank(table: Table):
    one, two, other = table.add(0, 1), table.add(0, 2), table.add(1, 3)
    table.receive(outputs(0, 0, (1, 65)))
    table.receive(outputs(0, 3, (2, 66)))
    assert table.aborts(0) == [1, 2]
    assert (await problem_of(one)).message == "Rank 0 failed: outputs 1 to 2 were lost"
    assert isinstance(await problem_of(two), Unavailable)
    assert table.work == {0: 0, 1: other.work}
    lost = [each for each in table.metrics.values() if each.name == LOST_MESSAGES.name]
    assert [(each.labels, each.value) for each in lost] == [(("engine-0",), 2)]
    later = table.add(0, 4)  # goes on from there
    table.receive(outputs(0, 4, (4, 67)))
    assert await tokens_of(later) == [67]


async def test_requests_that_never_arrived_fail(table: Table):
    first, second, third = table.add(0, 1), table.add(0, 2), table.add(0, 3)
    table.receive(outputs(0, 0, (1, 65), lost=(1, 1)))
    assert await tokens_of(first) == [65]
    assert (await problem_of(second)).message == "Rank 0 failed: the request never arrived there"
    table.receive(outputs(0, 1, (3, 66)))
    assert await tokens_of(third) == [66]


async def test_an_error_of_the_engine_is_told(table: Table):
    one = table.add(0, 1)
    failed = RequestOutput(1, [], FinishReason.error, 0, "out of blocks")
    table.receive(EngineOutputs(0, 0, 0, -1, [failed]))
    problem = await problem_of(one)
    assert isinstance(problem, EngineFailed)
    assert problem.message == "out of blocks"
    assert table.remove(one) is None


async def test_a_request_that_the_engine_gives_up_fails(table: Table):
    one = table.add(0, 1)
    given_up = RequestOutput(1, [], FinishReason.abort)
    table.receive(EngineOutputs(0, 0, 0, -1, [given_up]))
    assert isinstance(await problem_of(one), Unavailable)


async def test_a_request_is_removed_once(table: Table):
    one = table.add(0, 1)
    assert table.remove(one) is table.in_flight.engines[0]
    assert table.remove(one) is None
    assert table.aborts(0) == [1]
    table.receive(outputs(0, 0, (1, 65)))  # what the engine sent meanwhile
    assert table.aborts(0) == []


def test_outputs_that_nobody_wants_have_their_request_aborted_once_at_a_time(table: Table):
    table.receive(outputs(0, 0, (7, 65)))
    assert table.aborts(0) == [7]  # message 0 to it
    table.receive(outputs(0, 1, (7, 66)))
    assert table.aborts(0) == []  # message 1: it is being told
    table.receive(outputs(0, 2, (7, 67), acknowledged=1))
    assert table.aborts(0) == [7]  # it was told and goes on: told again
    ended = RequestOutput(8, [65], FinishReason.stop)
    table.receive(EngineOutputs(0, 0, 3, 2, [ended]))
    assert table.aborts(0) == []


def test_an_abort_that_got_lost_is_sent_again_for_the_same_reason(table: Table):
    one, two = table.add(0, 1), table.add(0, 2)  # messages 0 and 1
    table.in_flight.remove(one, FinishReason.stop)
    assert table.aborts(0) == [1]  # message 2
    table.remove(two)
    assert table.aborts(0) == [2]  # message 3
    engine = table.in_flight.engines[0]
    table.receive(outputs(0, 0, lost=(2, 2), acknowledged=3))
    assert engine.unsent_aborts == {1: FinishReason.stop}
    assert table.aborts(0) == [1]  # message 4
    table.receive(outputs(0, 1, acknowledged=4))
    assert not engine.sent_aborts
    assert not engine.unsent_aborts


def test_a_rank_that_owes_outputs_is_asked_for_them_now_and_then(table: Table):
    engine = table.in_flight.engines[0]
    assert not engine.needs_probe(99.0, 1.0)  # it owes nothing
    table.add(0, 1, now_s=100.0)
    engine.acknowledged, engine.sent_s = 0, 100.0
    assert not engine.needs_probe(100.9, 1.0)
    assert engine.needs_probe(101.1, 1.0)
    engine.probed_s = 101.1
    assert not engine.needs_probe(102.0, 1.0)
    assert engine.needs_probe(102.2, 1.0)  # no answer yet: the probe may have been lost
    table.receive(outputs(0, 0, acknowledged=0), now_s=102.3)
    assert not engine.needs_probe(103.2, 1.0)
    assert engine.needs_probe(103.4, 1.0)
    table.in_flight.apply([member(0, state=SUSPECT), member(1)])
    assert not engine.needs_probe(103.4, 1.0)


def test_a_rank_is_asked_when_it_does_not_acknowledge_although_it_sends_outputs(table: Table):
    engine = table.in_flight.engines[0]
    table.add(0, 1, now_s=0.0)
    table.add(0, 2, now_s=0.0)
    engine.sent_s = 0.0
    for now_s, sequence in ((0.5, 0), (1.0, 1), (1.5, 2)):
        table.receive(outputs(0, sequence, (1, 65), acknowledged=0), now_s)
    assert engine.needs_probe(1.5, 1.0)
    table.receive(outputs(0, 3, (1, 65), acknowledged=1), 1.6)
    assert not engine.needs_probe(1.6, 1.0)


async def test_requests_of_a_rank_that_stays_suspect_and_silent_fail(table: Table):
    one, other = table.add(0, 1, now_s=0.0), table.add(1, 2, now_s=0.0)
    table.in_flight.fail_overdue(9.0, suspect_s=60.0)
    table.in_flight.apply([member(0, state=SUSPECT, reason="silent for 1.1 s"), member(1)])
    table.in_flight.fail_overdue(20.0, suspect_s=60.0)
    table.receive(outputs(0, 0, (1, 65)), now_s=25.0)  # only the coordinator does not hear it
    table.in_flight.fail_overdue(84.0, suspect_s=60.0)
    assert await tokens_of(one) == [65]
    table.in_flight.apply([member(0, state=SUSPECT, reason="silent for 77.0 s"), member(1)])
    table.in_flight.fail_overdue(86.0, suspect_s=60.0)
    given_up = "silent for 77.0 s; given up after health.suspect_s (60 s)"
    assert (await problem_of(one)).message == f"Rank 0 failed: {given_up}"
    assert table.aborts(0) == [1]
    assert table.work == {1: other.work}  # ready, however long it takes


async def test_requests_of_a_rank_that_stays_out_of_reach_fail(table: Table):
    one = table.add(0, 1, now_s=0.0)
    table.in_flight.fail_overdue(0.0, suspect_s=60.0)
    table.in_flight.set_reachable(table.in_flight.engines[0], is_reachable=False, is_full=False)
    table.in_flight.fail_overdue(59.0, suspect_s=60.0)
    assert one.request_id in table.in_flight.engines[0].generations
    table.in_flight.fail_overdue(61.0, suspect_s=60.0)
    assert "not connected to this front end" in (await problem_of(one)).message


async def test_requests_of_a_silent_rank_fail_when_the_coordinator_is_long_silent_too(table: Table):
    one, other = table.add(0, 1, now_s=0.0), table.add(1, 2, now_s=0.0)
    table.in_flight.fail_overdue(100.0, suspect_s=60.0)  # ready: it may take its time
    table.in_flight.fail_overdue(130.0, suspect_s=60.0, is_informed=False)
    table.receive(outputs(1, 0, (2, 65)), now_s=150.0)
    table.in_flight.fail_overdue(161.0, suspect_s=60.0, is_informed=False)
    assert "and so is the coordinator" in (await problem_of(one)).message
    assert await tokens_of(other) == [65]


def test_only_ready_and_reachable_ranks_get_work(table: Table):
    assert table.work == {0: 0, 1: 0}
    table.in_flight.apply([member(0, state=SUSPECT, reason="silent"), member(1)])
    assert table.work == {1: 0}
    table.in_flight.set_reachable(table.in_flight.engines[1], is_reachable=True, is_full=True)
    assert table.work == {}
    table.in_flight.set_reachable(table.in_flight.engines[1], is_reachable=False, is_full=False)
    assert table.work == {}


async def test_a_suspect_rank_goes_on_with_what_it_has(table: Table):
    one = table.add(0, 1)
    table.in_flight.apply([member(0, state=SUSPECT), member(1)])
    table.receive(outputs(0, 0, (1, 65)))
    assert await tokens_of(one) == [65]


async def test_the_load_of_a_rank_is_its_report_and_what_was_sent_since(table: Table):
    work = table.in_flight.engines[0].work
    first = table.add(0, 1, num_prompt_tokens=100, now_s=1.0)
    second = table.add(0, 2, num_prompt_tokens=50, now_s=2.0)
    assert work.estimate == first.work + second.work == 170
    # Reported at 1.5: another front end's requests are in there, the second one is not.
    loads = Loads(1, [load(0, waiting_tokens=900, output_tokens=30, age_s=0.5)])
    table.in_flight.apply_loads(loads, now_s=2.0)
    assert work.estimate == 930 + second.work
    table.receive(outputs(0, 0, (2, 65)))  # its prompt is through
    assert second.work == 9
    assert work.estimate == 930 + 9
    table.in_flight.apply_loads(Loads(1, [load(0, output_tokens=3)]), now_s=3.0)
    assert work.estimate == work.own == first.work + 9  # the report cannot be all


async def test_what_was_sent_during_the_step_before_a_report_may_not_be_in_it(table: Table):
    one = table.add(0, 1, now_s=1.0)
    table.in_flight.apply_loads(Loads(1, [load(0, waiting_tokens=500, step_s=0.3)]), now_s=1.2)
    assert table.in_flight.engines[0].work.estimate == 500 + one.work
    table.in_flight.apply_loads(Loads(1, [load(0, waiting_tokens=500, step_s=0.3)]), now_s=1.4)
    assert table.in_flight.engines[0].work.estimate == 500


async def test_a_rank_that_is_not_in_the_snapshot_has_what_is_in_flight_here(table: Table):
    one = table.add(0, 1)
    table.in_flight.apply_loads(Loads(1, [load(0, waiting_tokens=500)]), now_s=1.0)
    table.in_flight.apply_loads(Loads(2, [load(1, waiting_tokens=5)]), now_s=2.0)
    work = {rank: engine.work.estimate for rank, engine in table.in_flight.engines.items()}
    assert work == {0: one.work, 1: 5}
    table.in_flight.forget_loads()
    assert table.in_flight.engines[1].work.estimate == 0


async def test_the_report_of_another_incarnation_is_ignored(table: Table):
    loads = [load(0, incarnation=1, waiting_tokens=500), load(7, waiting_tokens=1)]
    table.in_flight.apply_loads(Loads(1, loads), now_s=1.0)
    assert table.in_flight.engines[0].work.estimate == 0


@pytest.mark.parametrize("seed", range(20))
def test_work_is_the_sum_over_the_requests_in_flight(table: Table, seed: int):
    choice = random.Random(seed)
    engine = table.in_flight.engines[0]
    produced: dict[int, int] = {}
    prompts = [choice.randrange(1, 500) for _ in range(60)]
    for request_id, num_prompt_tokens in enumerate(prompts):
        produced[request_id] = 0
        table.add(0, request_id, num_prompt_tokens, now_s=request_id)
        for known in choice.sample(list(engine.generations), len(engine.generations) // 2):
            _one_step(table, known, produced, choice.random)
        if choice.random() < 0.2:
            now_s = request_id - choice.randrange(10)
            table.in_flight.apply_loads(Loads(1, [load(0, waiting_tokens=7)]), now_s)
        work = {
            number: work_of(prompts[number], produced[number], 10) for number in engine.generations
        }
        assert engine.work.own == sum(work.values())
        assert engine.work.unreported == sum(
            work[number] for number in work if number > engine.report_s
        )


def _one_step(
    table: Table, request_id: int, produced: dict[int, int], chance: Callable[[], float]
) -> None:
    engine = table.in_flight.engines[0]
    if chance() < 0.1:
        table.remove(engine.generations[request_id])
        return
    produced[request_id] += 1
    is_last = produced[request_id] == 10 or chance() < 0.1
    output = RequestOutput(request_id, [65], FinishReason.length if is_last else None)
    table.receive(EngineOutputs(0, 0, engine.expected, -1, [output]))
