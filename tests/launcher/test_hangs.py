"""Which processes hang, without a process: the clock is a number."""

import pytest

from engine.config import HealthOptions, Role
from engine.protocol import DeploymentState, Member, Membership, Phase, ProcessState
from launcher.hangs import Hangs

STEP_S = 0.25
OPTIONS = HealthOptions(silence_s=1.0, hang_s=10.0)
START_DEADLINE_S = 60.0
READY, SUSPECT = ProcessState.ready, ProcessState.suspect


class Clock:
    """Looks again and again, as the launcher does.

    Attributes:
        found: (name, complaint, when) of each process that was found to hang.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.hangs = Hangs(OPTIONS)
        self.found: list[tuple[str, str, float]] = []
        self.hangs.look(self.now)
        for name in ("coordinator", "frontend-0", "frontend-1"):
            self.hangs.started(name, 1, START_DEADLINE_S)
        self.run(5, *ALL_WELL)

    def run(self, duration_s: float, *members: Member) -> None:
        """Time passes, in which the coordinator says this if it says anything."""
        for _ in range(round(duration_s / STEP_S)):
            self.now += STEP_S
            if members:
                said = Membership(1, DeploymentState.serving, list(members), [], [])
                self.hangs.take(said)
            self.found += [(*each, self.now) for each in self.hangs.look(self.now)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def member(name: str, state: ProcessState, incarnation: int = 1) -> Member:
    role = Role.coordinator if name == "coordinator" else Role.frontend
    return Member(
        name=name,
        role=role,
        rank=None,
        incarnation=incarnation,
        node="head",
        pid=1,
        devices=[],
        state=state,
        phase=Phase.ready,
        since_s=0.0,
    )


COORDINATOR = member("coordinator", READY)
OTHER = member("frontend-1", READY)
ALL_WELL = (COORDINATOR, member("frontend-0", READY), OTHER)
ONE_SUSPECT = (COORDINATOR, member("frontend-0", SUSPECT), OTHER)


def test_nothing_hangs_that_does_well(clock: Clock):
    clock.run(1000, *ALL_WELL)
    assert clock.found == []


def test_a_silent_coordinator_hangs_and_is_named_once(clock: Clock):
    began = clock.now
    clock.run(100)
    assert clock.found == [("coordinator", "silent for 11 s", began + 11)]


def test_a_front_end_that_stays_suspect_hangs_and_is_named_once(clock: Clock):
    began = clock.now
    clock.run(100, *ONE_SUSPECT)
    assert clock.found == [("frontend-0", "suspect for 10 s", began + 10 + STEP_S)]


def test_a_front_end_that_comes_back_has_all_its_time_again(clock: Clock):
    for _ in range(5):
        clock.run(9, *ONE_SUSPECT)
        clock.run(STEP_S, *ALL_WELL)
    assert clock.found == []


def test_of_a_front_end_nothing_is_known_while_the_coordinator_is_silent(clock: Clock):
    clock.run(8, *ONE_SUSPECT)
    clock.run(10)
    clock.run(0.5, *ONE_SUSPECT)
    assert clock.found == []
    clock.run(2, *ONE_SUSPECT)
    assert [name for name, _, _ in clock.found] == ["frontend-0"]


def test_what_the_launcher_has_slept_through_is_not_held_against_anybody(clock: Clock):
    clock.run(5, *ONE_SUSPECT)
    clock.now += 1000
    clock.run(3, *ONE_SUSPECT)
    assert clock.found == []


def test_one_that_is_started_again_gets_the_deadline_of_its_start(clock: Clock):
    clock.run(12, *ONE_SUSPECT)
    clock.hangs.started("frontend-0", 2, START_DEADLINE_S)
    clock.found.clear()
    began = clock.now
    clock.run(100, *ALL_WELL)  # of its incarnation 1, which no longer counts
    complaint = "not ready after 60 s (backend.start_deadline_s)"
    assert clock.found == [("frontend-0", complaint, began + START_DEADLINE_S + STEP_S)]


def test_a_coordinator_that_is_started_again_gets_the_deadline_of_its_start(clock: Clock):
    clock.hangs.ended("coordinator")
    clock.run(100)
    clock.hangs.started("coordinator", 2, START_DEADLINE_S)
    clock.run(50)
    assert clock.found == []
    clock.run(30, member("coordinator", READY, incarnation=2), *ALL_WELL[1:])
    assert clock.found == []
    clock.run(12)
    assert [name for name, _, _ in clock.found] == ["coordinator"]


def test_one_that_has_ended_does_not_hang(clock: Clock):
    clock.run(5, *ONE_SUSPECT)
    clock.hangs.ended("frontend-0")
    clock.run(100, *ONE_SUSPECT)
    assert clock.found == []
