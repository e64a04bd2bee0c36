"""What was lost without a trace is asked for; who stays silent is given up."""

import pytest

from engine.protocol import EngineOutputs, FinishReason, RequestOutput
from tests.engine.frontend.in_flight_table import (
    SUSPECT,
    Table,
    member,
    outputs,
    problem_of,
    tokens_of,
)


@pytest.fixture
def table() -> Table:
    return Table()


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


async def test_requests_of_a_ready_rank_that_leaves_a_question_unanswered_fail(table: Table):
    one, other = table.add(0, 1, now_s=0.0), table.add(1, 2, now_s=0.0)
    table.in_flight.fail_overdue(1.0, suspect_s=60.0)
    for engine in table.in_flight.engines.values():
        engine.note_probe(1.0)
    table.receive(outputs(1, 0), now_s=1.5)
    for now_s in (20.0, 40.0, 60.0):
        table.in_flight.engines[0].note_probe(now_s)
        table.in_flight.fail_overdue(now_s, suspect_s=60.0)
    assert table.work == {0: one.work, 1: other.work}
    table.in_flight.fail_overdue(62.0, suspect_s=60.0)
    assert "does not answer this front end" in (await problem_of(one)).message
    assert table.work == {1: other.work}
    table.receive(outputs(0, 0), now_s=63.0)
    assert table.work == {0: 0, 1: other.work}


def test_a_rank_is_connected_when_it_has_answered_since_it_was_reached(table: Table):
    engine = table.in_flight.engines[0]
    table.in_flight.set_reachable(engine, is_reachable=False, is_full=False)
    table.receive(outputs(0, 0))  # on its way before the connection broke
    assert table.work == {1: 0}
    table.in_flight.set_reachable(engine, is_reachable=True, is_full=False)
    assert table.work == {1: 0}
    table.receive(outputs(0, 1))
    assert table.work == {0: 0, 1: 0}


async def test_a_rank_whose_requests_are_given_up_unanswered_gets_no_others(table: Table):
    one, other = table.add(0, 1, now_s=0.0), table.add(1, 2, now_s=0.0)
    table.in_flight.fail_overdue(1.0, suspect_s=60.0)
    table.in_flight.engines[0].note_probe(1.5)  # a little after it was trusted last
    table.in_flight.fail_overdue(61.2, suspect_s=60.0)
    assert "does not answer this front end" in (await problem_of(one)).message
    assert table.work == {1: other.work}
