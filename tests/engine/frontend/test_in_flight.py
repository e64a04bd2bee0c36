import random
from collections.abc import Callable

import pytest

from engine.frontend.errors import EngineFailed, Unavailable
from engine.frontend.load_balancer import work_of
from engine.metrics import LOST_MESSAGES
from engine.protocol import (
    EngineOutputs,
    FinishReason,
    Loads,
    RequestOutput,
)
from tests.engine.frontend.in_flight_table import (
    LOST,
    SUSPECT,
    Table,
    load,
    member,
    outputs,
    problem_of,
    tokens_of,
)


@pytest.fixture
def table() -> Table:
    return Table()


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


def test_only_ready_and_connected_ranks_get_work(table: Table):
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
