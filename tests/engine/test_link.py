"""A process's link to the coordinator, with the real coordinator in a thread."""

import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

from engine.config import HealthOptions, ProcessSpec, Role
from engine.coordinator.process import Coordinator
from engine.link import CoordinatorLink
from engine.protocol import Member, Membership, Phase, ProcessState, Register
from tests.engine.settings import dummy_settings

DEADLINE_S = 10.0
HEARTBEAT_S = 0.05
SILENCE_S = 1.0
"""Far more than a heartbeat, on a busy machine too."""
HELLO = Register("engine-0", 1, Role.engine, 0, "head", 1, [], {}, {})


class Coordinating:
    """A coordinator in a thread, until `close`."""

    def __init__(self, endpoint: str) -> None:
        head = ProcessSpec(name="coordinator", role=Role.coordinator, node="head")
        settings = dummy_settings(health=HealthOptions(silence_s=SILENCE_S))
        self._coordinator = Coordinator(head, settings, endpoint, 1)
        self._thread = threading.Thread(target=self._coordinator.main_loop)
        self._thread.start()

    def close(self) -> None:
        self._coordinator.stop()
        self._thread.join(DEADLINE_S)
        self._coordinator.close()


class Linked:
    """A link and the memberships it has told."""

    def __init__(self, endpoint: str, hello: Register = HELLO) -> None:
        self._changed = threading.Condition()
        self._memberships: list[Membership] = []
        self.link = CoordinatorLink(endpoint, hello, HEARTBEAT_S, self._take)
        self.link.start()

    def _take(self, membership: Membership) -> None:
        with self._changed:
            self._memberships.append(membership)
            self._changed.notify_all()

    def forget(self) -> None:
        with self._changed:
            self._memberships.clear()

    def wait(self, holds: Callable[[Member], bool]) -> Member:
        """The first state of `engine-0` that was told and of which it holds."""

        def found() -> Member | None:
            told = (each for membership in self._memberships for each in membership.members)
            return next((each for each in told if each.name == HELLO.name and holds(each)), None)

        with self._changed:
            member = self._changed.wait_for(found, DEADLINE_S)
            assert member is not None, self._memberships
            return member


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="fl") as directory:
        yield f"ipc://{directory}/coordinator"


@pytest.fixture
def coordinating(endpoint: str) -> Iterator[Coordinating]:
    made = Coordinating(endpoint)
    yield made
    made.close()


@pytest.fixture
def linked(endpoint: str, coordinating: Coordinating) -> Iterator[Linked]:
    made = Linked(endpoint)
    yield made
    made.link.close()


def test_it_registers_and_tells_its_phases(linked: Linked):
    assert linked.wait(lambda _: True).state is ProcessState.starting
    linked.link.enter_phase(Phase.loading_weights)
    linked.wait(lambda member: member.phase is Phase.loading_weights)
    linked.link.enter_phase(Phase.ready)
    linked.wait(lambda member: member.state is ProcessState.ready)


def test_heartbeats_keep_it_ready_and_tell_its_work(linked: Linked):
    linked.link.enter_phase(Phase.ready)
    old = linked.wait(lambda member: member.state is ProcessState.ready and member.since_s > 0)
    later = linked.wait(lambda member: member.since_s > old.since_s + 1.5 * SILENCE_S)
    assert later.state is ProcessState.ready
    linked.link.report(progress=1, num_requests=3)
    linked.wait(lambda member: member.num_requests == 3)


def test_close_sends_what_waits_and_ends_the_thread(endpoint: str, coordinating: Coordinating):
    linked = Linked(endpoint)
    linked.link.enter_phase(Phase.ready)
    linked.link.close()
    assert "coordinator-link" not in {thread.name for thread in threading.enumerate()}
    other = Linked(endpoint, Register("frontend-0", 1, Role.frontend, None, "head", 1, [], {}, {}))
    try:
        assert other.wait(lambda _: True).phase is Phase.ready
        other.wait(lambda member: member.state is ProcessState.suspect)  # nobody beats for it
    finally:
        other.link.close()


def test_it_registers_again_at_a_coordinator_that_was_restarted(endpoint: str):
    first = Coordinating(endpoint)
    linked = Linked(endpoint)
    try:
        linked.link.enter_phase(Phase.ready)
        linked.wait(lambda member: member.state is ProcessState.ready)
        first.close()
        linked.forget()
        second = Coordinating(endpoint)
        try:
            linked.wait(lambda member: member.state is ProcessState.ready)
            assert linked.link.get_plan().result(DEADLINE_S).plan is None
        finally:
            second.close()
    finally:
        linked.link.close()
