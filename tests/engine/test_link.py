"""A process's link to the coordinator, with the real coordinator in a thread."""

import itertools
import math
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import pytest
import zmq

from engine import transport
from engine.config import CoordinatorOptions, HealthOptions, ProcessSpec, Role
from engine.coordinator.process import Coordinator
from engine.link import CoordinatorLink
from engine.metrics import MetricValue
from engine.protocol import (
    ENCODER,
    LOADS_TOPIC,
    MEMBERSHIP_TOPIC,
    METRICS_TOPIC,
    ApplyPlan,
    DeploymentState,
    LoadReport,
    Loads,
    Member,
    Membership,
    MetricsSnapshot,
    Phase,
    ProcessExited,
    ProcessState,
    Published,
    RankLoad,
    Register,
    Registered,
    first_epoch,
)
from tests.engine.settings import dummy_settings

T = TypeVar("T")
DEADLINE_S = 10.0
HEARTBEAT_S = 0.05
SILENCE_S = 1.0
"""Far more than a heartbeat, on a busy machine too."""
HELLO = Register("frontend-0", 1, Role.frontend, None, "head", 1, [], {}, {})
ENGINE = Register("engine-0", 1, Role.engine, 0, "head", 1, [], {}, {})
PLAN = ApplyPlan(
    [
        ProcessSpec(name="frontend-0", role=Role.frontend, node="head"),
        ProcessSpec(name="engine-0", role=Role.engine, node="head", rank=0),
    ],
    msgspec.Raw(ENCODER.encode("a plan")),
    incarnations={"frontend-0": 1, "engine-0": 1},
)
PACE = CoordinatorOptions(interval_s=0.02, metrics_interval_s=0.05)


class Coordinating:
    """A coordinator in a thread, until `close`."""

    def __init__(self, endpoint: str, incarnation: int = 1) -> None:
        head = ProcessSpec(name="coordinator", role=Role.coordinator, node="head")
        settings = dummy_settings(health=HealthOptions(silence_s=SILENCE_S), coordinator=PACE)
        self._coordinator = Coordinator(head, settings, endpoint, incarnation)
        self._thread = threading.Thread(target=self._coordinator.main_loop)
        self._thread.start()

    def close(self) -> None:
        self._coordinator.stop()
        self._thread.join(DEADLINE_S)
        self._coordinator.close()


class Linked:
    """A link and what it has told."""

    def __init__(self, endpoint: str, hello: Register | ApplyPlan = HELLO) -> None:
        self._changed = threading.Condition()
        self._told: list[Published] = []
        self.link = CoordinatorLink(
            *(endpoint, hello, HEARTBEAT_S, self._take),
            on_loads=self._take,
            on_metrics=self._take,
            pace=PACE,
        )
        self.link.start()

    def _take(self, message: Published) -> None:
        with self._changed:
            self._told.append(message)
            self._changed.notify_all()

    @property
    def told(self) -> list[Published]:
        with self._changed:
            return list(self._told)

    def members(self, name: str = HELLO.name) -> list[Member]:
        """Each state of the process that was told."""
        memberships = [each for each in self.told if isinstance(each, Membership)]
        return [each for message in memberships for each in message.members if each.name == name]

    def forget(self) -> None:
        with self._changed:
            self._told.clear()

    def wait(self, holds: Callable[[Member], bool], name: str = HELLO.name) -> Member:
        """The first state of the process that was told and of which it holds."""

        def found(message: Published) -> Member | None:
            members = message.members if isinstance(message, Membership) else []
            return next((m for m in members if m.name == name and holds(m)), None)

        return self.wait_for(found)

    def wait_for(self, found: Callable[[Published], T | None]) -> T:
        """What `found` makes of the first message that it makes something of."""

        def first() -> T | None:
            return next((made for each in self._told if (made := found(each)) is not None), None)

        with self._changed:
            made = self._changed.wait_for(first, DEADLINE_S)
            assert made is not None, self._told
            return made


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


def test_heartbeats_with_progress_keep_it_ready_and_tell_its_work(linked: Linked):
    linked.link.enter_phase(Phase.ready)
    num_told = itertools.count()

    def moves_on(member: Member) -> bool:
        """Makes progress whenever it looks, which is at every message."""
        linked.link.report(progress=next(num_told), num_requests=3)
        return member.state is ProcessState.ready and member.since_s > 1.5 * SILENCE_S

    linked.wait(moves_on)
    linked.wait(lambda member: member.num_requests == 3)
    states = {member.state for member in linked.members() if member.phase is Phase.ready}
    assert states == {ProcessState.ready}


def test_close_sends_what_waits_and_ends_the_thread(endpoint: str, coordinating: Coordinating):
    linked = Linked(endpoint)
    linked.link.enter_phase(Phase.ready)
    linked.link.close()
    assert "coordinator-link" not in {thread.name for thread in threading.enumerate()}
    other = Linked(endpoint, ENGINE)
    observer = Linked(endpoint, msgspec.structs.replace(HELLO, name="frontend-1"))
    try:
        assert observer.wait(lambda _: True).phase is Phase.ready
        observer.wait(lambda m: m.state is ProcessState.suspect)  # nobody beats for it
    finally:
        other.link.close()
        observer.link.close()


def test_an_engine_core_is_told_of_front_ends_and_lost_engine_cores_only(
    endpoint: str, linked: Linked
):
    engine = Linked(endpoint, ENGINE)
    other = Linked(endpoint, msgspec.structs.replace(ENGINE, name="engine-1", rank=1))
    try:
        linked.wait(lambda _: True, "engine-0")
        linked.wait(lambda _: True, "engine-1")
        engine.forget()
        names = engine.wait_for(_names)
        assert names == {HELLO.name}
        linked.link.send(ProcessExited("engine-1", 1, "killed"))
        engine.wait(lambda m: m.state is ProcessState.lost, "engine-1")
    finally:
        engine.link.close()
        other.link.close()


def test_loads_reach_front_ends_newest_first_and_with_their_age(endpoint: str, linked: Linked):
    engine = Linked(endpoint, ENGINE)
    try:
        linked.wait(lambda _: True, "engine-0")
        for num_running in range(1, 101):
            engine.link.report_load(load(num_running))

        def last(message: Published) -> RankLoad | None:
            ranks = message.ranks if isinstance(message, Loads) else []
            return next((each for each in ranks if each.num_running == 100), None)

        assert linked.wait_for(last).age_s < DEADLINE_S
    finally:
        engine.link.close()


def test_the_load_of_an_incarnation_that_is_not_known_is_ignored(endpoint: str, linked: Linked):
    engine = Linked(endpoint, ENGINE)
    try:
        engine.link.report_load(load(5))
        linked.wait_for(lambda message: _running(message, 5))
        engine.link.send(LoadReport("engine-0", load(7, incarnation=2)))
        engine.link.enter_phase(Phase.loading_weights)
        linked.wait(lambda member: member.phase is Phase.loading_weights, "engine-0")
        epoch = max(filter(None, map(_epoch, linked.told)))  # the coordinator has had both

        def later(message: Published) -> set[int] | None:
            return (
                _running(message, 5)
                if isinstance(message, Loads) and message.epoch >= epoch
                else None
            )

        assert linked.wait_for(later) == {5}
    finally:
        engine.link.close()


def test_heartbeats_confirm_a_load_only_while_it_is_found_unchanged(endpoint: str, linked: Linked):
    engine = Linked(endpoint, ENGINE)
    try:
        engine.link.report_load(load(5))
        stale = linked.wait_for(lambda message: _age(message, above=2 * SILENCE_S))
        linked.forget()
        engine.link.report_load(load(5))
        assert linked.wait_for(lambda message: _age(message, below=stale)) < stale
    finally:
        engine.link.close()


def test_loads_of_a_rank_that_is_lost_are_forgotten(endpoint: str, linked: Linked):
    engine = Linked(endpoint, ENGINE)
    try:
        engine.link.report_load(load(3))
        linked.wait_for(lambda message: _running(message, 3))
        linked.link.send(ProcessExited("engine-0", 1, "killed"))
        linked.forget()
        linked.wait_for(lambda m: True if isinstance(m, Loads) and not m.ranks else None)
    finally:
        engine.link.close()


def test_metrics_reach_front_ends_with_the_coordinators_own(endpoint: str, linked: Linked):
    engine = Linked(endpoint, ENGINE)
    values = [MetricValue("generation_tokens", (), 7.0)]
    try:
        engine.link.report_metrics(values)

        def both(message: Published) -> MetricsSnapshot | None:
            processes = message.processes if isinstance(message, MetricsSnapshot) else []
            names = {report.name for report in processes}
            assert names <= {"engine-0", "coordinator"}
            return message if len(names) == 2 and isinstance(message, MetricsSnapshot) else None

        reports = {report.name: report for report in linked.wait_for(both).processes}
        assert reports["engine-0"].values == values
        assert reports["engine-0"].rank == 0
        own = {(value.name, value.labels): value.value for value in reports["coordinator"].values}
        assert own["coordinator_messages", ("Register",)] >= 2
    finally:
        engine.link.close()


def test_it_registers_again_at_a_coordinator_that_was_restarted(endpoint: str):
    first = Coordinating(endpoint)
    linked = Linked(endpoint)
    engine = Linked(endpoint, ENGINE)
    launcher = Linked(endpoint, PLAN)
    try:
        linked.link.enter_phase(Phase.ready)
        engine.link.report_load(load(5))
        linked.wait_for(lambda message: _running(message, 5))
        before = linked.wait_for(_epoch)
        first.close()
        linked.forget()
        second = Coordinating(endpoint, incarnation=2)
        try:
            linked.wait(lambda member: member.state is ProcessState.ready)
            assert linked.wait_for(_epoch) > before + 1_000_000
            linked.wait_for(lambda message: _running(message, 5))
            assert linked.link.get_plan().result(DEADLINE_S).plan == "a plan"
        finally:
            second.close()
    finally:
        for each in (linked, engine, launcher):
            each.link.close()


def test_a_restarted_coordinator_says_nothing_before_it_knows_the_plan(endpoint: str):
    second = Coordinating(endpoint, incarnation=2)
    linked = Linked(endpoint, msgspec.structs.replace(HELLO, phase=Phase.ready))
    try:
        assert linked.link.get_plan().result(DEADLINE_S).plan is None
        launcher = Linked(endpoint, PLAN)
        try:
            # engine-0 has not registered: it is suspect, as the launcher says that it is there
            linked.wait(lambda member: member.state is ProcessState.suspect, "engine-0")
            first = linked.wait_for(lambda message: message)
            assert isinstance(first, Membership)
            assert {m.name for m in first.members} == {"coordinator", "frontend-0", "engine-0"}
        finally:
            launcher.link.close()
    finally:
        linked.link.close()
        second.close()


def test_a_process_that_cannot_take_a_message_still_sends_heartbeats(
    endpoint: str, coordinating: Coordinating, caplog: pytest.LogCaptureFixture
):
    has_failed = threading.Event()

    def fail(_: Membership) -> None:
        has_failed.set()
        raise RuntimeError("a defect")

    link = CoordinatorLink(endpoint, HELLO, HEARTBEAT_S, fail, pace=PACE)
    observer = Linked(endpoint, msgspec.structs.replace(HELLO, name="frontend-1"))
    link.start()
    try:
        assert has_failed.wait(DEADLINE_S)
        link.report(progress=1, num_requests=7)
        observer.wait(lambda member: member.num_requests == 7)
    finally:
        link.close()
        observer.link.close()
    assert "Membership could not be taken" in caplog.text


def test_what_a_coordinator_has_said_that_was_replaced_is_ignored(endpoint: str):
    with zmq.Context() as context:
        inbox, _ = transport.bind(context, zmq.ROUTER, endpoint)
        beside = transport.sibling_endpoint(endpoint, "membership")
        publisher, publish_endpoint = transport.bind(context, zmq.XPUB, beside)
        with inbox, publisher:
            linked = Linked(endpoint)
            try:
                assert inbox.poll(round(1000 * DEADLINE_S))
                transport.send(inbox, Registered(publish_endpoint), inbox.recv_multipart()[0])
                for _ in (MEMBERSHIP_TOPIC, LOADS_TOPIC, METRICS_TOPIC):
                    assert publisher.poll(round(1000 * DEADLINE_S))
                    publisher.recv()
                new, old = first_epoch(2), first_epoch(1)
                first = Membership(new, DeploymentState.serving, [], [], [])
                transport.send(publisher, first, MEMBERSHIP_TOPIC)
                linked.wait_for(lambda message: message == first or None)
                transport.send(publisher, Loads(old + 9, []), LOADS_TOPIC)
                last = msgspec.structs.replace(first, epoch=new + 1)
                transport.send(publisher, last, MEMBERSHIP_TOPIC)
                linked.wait_for(lambda message: message == last or None)
                current = Loads(new, [])
                transport.send(publisher, current, LOADS_TOPIC)
                linked.wait_for(lambda message: message == current or None)
                assert [each for each in linked.told if isinstance(each, Loads)] == [current]
            finally:
                linked.link.close()


def load(num_running: int, incarnation: int = 1) -> RankLoad:
    return RankLoad(0, incarnation, 0, num_running, 0, 0, 0.0, 0.0)


def _running(message: Published, num_running: int) -> set[int] | None:
    """How many requests the ranks run, if one runs so many."""
    found = {each.num_running for each in message.ranks} if isinstance(message, Loads) else set()
    return found if num_running in found else None


def _age(message: Published, above: float = -1.0, below: float = math.inf) -> float | None:
    """Age of the one load that is told, if it is between these."""
    ages = [each.age_s for each in message.ranks] if isinstance(message, Loads) else []
    return ages[0] if ages and above < ages[0] < below else None


def _names(message: Published) -> set[str] | None:
    return {m.name for m in message.members} if isinstance(message, Membership) else None


def _epoch(message: Published) -> int | None:
    return message.epoch if isinstance(message, Membership) else None
