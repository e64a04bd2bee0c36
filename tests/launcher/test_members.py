"""What is told of the processes, and known of their requests, by what the coordinator says."""

from typing import Any

import pytest

from engine.config import Role
from engine.protocol import DeploymentState, Member, Membership, Phase, ProcessState
from launcher.members import Members

FRONT_ENDS = ("frontend-0", "frontend-1")


def member(name: str, state: ProcessState = ProcessState.ready, **more: Any) -> Member:
    fields: dict[str, Any] = {
        "role": Role.frontend if name in FRONT_ENDS else Role.engine,
        "rank": None,
        "incarnation": 1,
        "node": "head",
        "pid": 1,
        "devices": [],
        "phase": Phase.ready,
        "since_s": 0.0,
    }
    return Member(name=name, state=state, **fields | more)


def said(*members: Member, state: DeploymentState = DeploymentState.serving) -> Membership:
    return Membership(1, state, list(members), [], [])


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def members(told: list[tuple[str, str]]) -> Members:
    return Members(lambda name, news: told.append((name, news)))


def test_each_change_is_told_once(members, told):
    suspect = member("engine-0", ProcessState.suspect, reason="silent for 1.1 s")
    later = member("engine-0", ProcessState.suspect, reason="silent for 2.1 s")
    for each in (member("engine-0"), member("engine-0"), suspect, later, member("engine-0")):
        members.take(said(each))
    news = ["ready", "suspect: silent for 1.1 s", "ready again"]
    assert told == [("engine-0", each) for each in news]


def test_a_process_that_is_started_again_is_not_called_lost(members, told):
    importing = {"incarnation": 2, "phase": Phase.importing}
    members.take(said(member("frontend-0")))
    members.take(said(member("frontend-0", ProcessState.lost, reason="killed by SIGKILL")))
    members.take(said(member("frontend-0", ProcessState.starting, **importing)))
    members.take(said(member("frontend-0", incarnation=2)))
    assert [news for _, news in told] == ["ready", "importing (start 2)", "ready (start 2)"]


def test_requests_of_a_suspect_front_end_are_in_flight(members):
    suspect = member("frontend-1", ProcessState.suspect, num_requests=2)
    engine = member("engine-0", num_requests=4)
    members.take(said(member("frontend-0", num_requests=1), suspect, engine))
    assert members.num_requests == 3
    gone = member("frontend-1", ProcessState.lost, num_requests=2)
    members.take(said(member("frontend-0", num_requests=1), gone, engine))
    assert members.num_requests == 1


def test_it_is_drained_when_no_front_end_has_work_any_more(members):
    draining = DeploymentState.draining
    drained = member("frontend-0", ProcessState.drained)
    assert not members.is_drained
    members.take(said(drained))
    assert not members.is_drained
    members.take(said(drained, member("frontend-1"), state=draining))
    assert not members.is_drained
    members.take(said(drained, member("frontend-1", ProcessState.lost), state=draining))
    assert members.is_drained


def test_who_is_not_ready_is_named_with_what_they_do(members):
    loading = member("engine-0", ProcessState.starting, phase=Phase.loading_weights)
    members.take(said(member("frontend-0"), loading))
    names = ("frontend-0", "frontend-1", "engine-0")
    late = {"frontend-1": "has not registered", "engine-0": "is loading weights"}
    assert members.unready(names) == late
