"""The registry's story, with a clock that the tests turn."""

import msgspec
import pytest

from engine.config import ProcessSpec, Role, WorkerSpec
from engine.coordinator.membership import Registry
from engine.protocol import (
    ENCODER,
    LAUNCHER,
    ApplyPlan,
    DeploymentState,
    Heartbeat,
    Phase,
    ProcessState,
    Register,
)


def hello(name="engine-0", incarnation=1, rank=0, role=Role.engine, devices=()) -> Register:
    return Register(name, incarnation, role, rank, "head", 4711, list(devices), {}, {})


def registry_of(incarnation: int = 1) -> Registry:
    return Registry(silence_s=1.0, heartbeat_s=0.2, interval_s=0.05, incarnation=incarnation)


@pytest.fixture
def registry() -> Registry:
    return registry_of()


def ready(registry: Registry, **of) -> None:
    message = hello(**of)
    registry.register(message, 0.0)
    registry.enter_phase(message.name, message.incarnation, Phase.ready, 0.0)


def state(registry: Registry, name="engine-0") -> ProcessState:
    return next(m.state for m in registry.members(0.0) if m.name == name)


def test_a_process_starts_and_becomes_ready(registry):
    registry.register(hello(), 0.0)
    registry.enter_phase("engine-0", 1, Phase.loading_weights, 1.0)
    [member] = registry.members(2.0)
    assert (member.state, member.phase) == (ProcessState.starting, Phase.loading_weights)
    registry.enter_phase("engine-0", 1, Phase.ready, 3.0)
    [member] = registry.members(5.0)
    assert (member.state, member.since_s) == (ProcessState.ready, 2.0)


def test_every_change_makes_a_new_epoch_and_a_heartbeat_does_not(registry):
    ready(registry)
    epoch = registry.epoch
    registry.heartbeat(Heartbeat("engine-0", 1, 5, 0), 0.5)
    assert registry.epoch == epoch
    registry.lose("engine-0", 1, "exit code 1", 0.6)
    assert registry.epoch == epoch + 1


def test_a_silent_rank_becomes_suspect_and_comes_back(registry):
    ready(registry)
    for now in (0.3, 0.6, 0.9):
        registry.tick(now)
    assert state(registry) is ProcessState.ready
    registry.tick(1.1)
    [member] = registry.members(1.1)
    assert (member.state, member.reason) == (ProcessState.suspect, "silent for 1.1 s")
    registry.heartbeat(Heartbeat("engine-0", 1, 1), 1.2)
    assert state(registry) is ProcessState.ready


def test_the_reason_tells_how_long_it_has_been_and_makes_no_new_epoch(registry):
    ready(registry)
    for now in (0.4, 0.8, 1.1):
        registry.tick(now)
    epoch = registry.epoch
    for now in (1.5, 1.9, 2.3):
        registry.tick(now)
    membership = registry.membership(2.3)
    assert [member.reason for member in membership.members] == ["silent for 2.3 s"]
    assert membership.epoch == epoch


def test_a_rank_with_work_and_no_progress_is_suspect_until_it_moves(registry):
    ready(registry)
    for now in (0.5, 1.0, 1.5):
        registry.heartbeat(Heartbeat("engine-0", 1, 7, 3), now)
        registry.tick(now)
    assert state(registry) is ProcessState.ready  # the first beat brought progress: 0 to 7
    registry.heartbeat(Heartbeat("engine-0", 1, 7, 3), 1.6)
    registry.tick(1.6)
    [member] = registry.members(1.6)
    assert (member.state, member.reason) == (
        ProcessState.suspect,
        "has work but makes no progress for 1.1 s",
    )
    registry.heartbeat(Heartbeat("engine-0", 1, 8, 3), 1.8)
    assert state(registry) is ProcessState.ready


def test_a_rank_may_take_as_long_for_progress_as_it_says_and_never_be_silent(registry):
    ready(registry)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.4):
        registry.heartbeat(Heartbeat("engine-0", 1, 7, 3, patience_s=3.0), now)
        registry.tick(now)
        assert state(registry) is ProcessState.ready
    registry.heartbeat(Heartbeat("engine-0", 1, 7, 3, patience_s=3.0), 3.6)
    registry.tick(3.6)
    assert state(registry) is ProcessState.suspect
    registry.heartbeat(Heartbeat("engine-0", 1, 8, 3, patience_s=6.2), 3.7)
    assert state(registry) is ProcessState.ready
    for now in (4.0, 4.4, 4.8):
        registry.tick(now)
    [member] = registry.members(4.8)
    assert member.reason == "silent for 1.1 s"


def test_an_idle_rank_has_to_look_for_work(registry):
    ready(registry)
    for progress, now in enumerate((0.4, 0.8, 1.2, 1.6), start=1):
        registry.heartbeat(Heartbeat("engine-0", 1, progress, 0), now)
        registry.tick(now)
    assert state(registry) is ProcessState.ready
    for now in (2.0, 2.4, 2.7):
        registry.heartbeat(Heartbeat("engine-0", 1, 4, 0), now)
        registry.tick(now)
    [member] = registry.members(2.7)
    assert member.state is ProcessState.suspect
    assert member.reason == "has no work but is stuck for 1.1 s"
    registry.heartbeat(Heartbeat("engine-0", 1, 5, 0), 2.8)
    assert state(registry) is ProcessState.ready


def test_a_front_end_whose_event_loop_is_stuck_is_suspect_until_it_turns(registry):
    ready(registry, name="frontend-0", rank=None, role=Role.frontend)
    for progress, now in enumerate((0.4, 0.8, 1.2, 1.6), start=1):
        registry.heartbeat(Heartbeat("frontend-0", 1, progress, 3), now)
        registry.tick(now)
    assert state(registry, "frontend-0") is ProcessState.ready
    for now in (2.0, 2.4, 2.7):
        registry.heartbeat(Heartbeat("frontend-0", 1, 4, 3), now)
        registry.tick(now)
    assert state(registry, "frontend-0") is ProcessState.suspect
    registry.heartbeat(Heartbeat("frontend-0", 1, 5, 3), 2.8)
    assert state(registry, "frontend-0") is ProcessState.ready


def test_a_coordinator_has_no_progress_to_tell(registry):
    ready(registry, name="coordinator", rank=None, role=Role.coordinator)
    for now in (0.4, 0.8, 1.2, 1.6):
        registry.heartbeat(Heartbeat("coordinator", 1), now)
        registry.tick(now)
    assert state(registry, "coordinator") is ProcessState.ready


def test_a_starting_process_may_be_silent(registry):
    registry.register(hello(), 0.0)
    registry.tick(100.0)
    assert state(registry) is ProcessState.starting


def test_a_lost_incarnation_never_comes_back(registry):
    ready(registry)
    registry.lose("engine-0", 1, "killed by SIGKILL", 1.0)
    registry.heartbeat(Heartbeat("engine-0", 1), 1.1)
    registry.enter_phase("engine-0", 1, Phase.ready, 1.2)
    assert not registry.register(hello(), 1.3)
    assert state(registry) is ProcessState.lost


def test_a_newer_incarnation_takes_the_place_and_the_old_one_is_ignored(registry):
    ready(registry)
    registry.lose("engine-0", 1, "killed by SIGKILL", 1.0)
    assert registry.register(hello(incarnation=2), 2.0)
    registry.heartbeat(Heartbeat("engine-0", 1), 2.1)
    [member] = registry.members(2.5)
    assert (member.incarnation, member.state) == (2, ProcessState.starting)
    assert not registry.register(hello(incarnation=1), 3.0)


def test_registering_twice_changes_nothing(registry):
    ready(registry)
    assert registry.register(hello(), 1.0)
    assert state(registry) is ProcessState.ready


def test_a_front_end_is_drained_only_while_the_deployment_drains(registry):
    ready(registry, name="frontend-0", rank=None, role=Role.frontend)
    registry.drained("frontend-0", 1, 1.0)
    assert state(registry, "frontend-0") is ProcessState.ready
    registry.apply_plan(told(state=DeploymentState.draining), 1.5)
    registry.drained("frontend-0", 1, 2.0)
    assert state(registry, "frontend-0") is ProcessState.drained
    assert registry.membership(2.0).state is DeploymentState.draining


def told(*processes: ProcessSpec, **more) -> ApplyPlan:
    return ApplyPlan(list(processes), msgspec.Raw(ENCODER.encode(None)), **more)


def planned(name="engine-0", rank=0, devices=()) -> ProcessSpec:
    worker = WorkerSpec(
        index=0, node="head", group="rank-0", bundle=0, devices=tuple(devices), num_threads=1
    )
    return ProcessSpec(name=name, role=Role.engine, node="head", rank=rank, workers=(worker,))


def test_planned_processes_that_have_not_registered_are_missing(registry):
    registry.apply_plan(told(planned(), planned("engine-1", 1)), 0.0)
    registry.register(hello(), 0.0)
    assert registry.membership(0.0).missing == ["engine-1"]


def test_what_is_not_as_planned_is_told(registry):
    registry.apply_plan(told(planned(devices=[0])), 0.0)
    registry.register(hello(devices=[1]), 0.0)
    registry.register(hello("engine-7", rank=7), 0.0)
    assert registry.drift() == [
        "engine-0: devices [1], planned [0]",
        "engine-7 registered, but is not in the plan",
    ]


def test_where_the_plan_has_no_ids_devices_are_counted_once_they_are_told(restarted):
    spec = planned()
    worker = msgspec.structs.replace(spec.workers[0], num_gpus=1)
    spec = msgspec.structs.replace(spec, workers=(worker,))
    restarted.apply_plan(told(spec, incarnations={"engine-0": 1}), 0.0)
    restarted.tick(1.1)
    assert restarted.drift() == []  # it is there, and has not said with what
    restarted.register(hello(devices=[7]), 1.2)
    assert restarted.drift() == []
    restarted.register(hello(devices=[], incarnation=2), 1.3)
    assert restarted.drift() == ["engine-0: devices 0, planned 1"]


def test_there_is_no_drift_before_the_plan_is_known(registry):
    registry.register(hello(), 0.0)
    assert registry.drift() == []


def test_what_the_coordinator_slept_through_is_not_held_against_others(registry):
    ready(registry)
    registry.heartbeat(Heartbeat("engine-0", 1, 7, 3), 0.1)
    registry.tick(0.2)
    registry.tick(5.2)
    assert state(registry) is ProcessState.ready
    registry.tick(5.6)
    registry.tick(6.0)
    registry.tick(6.3)
    assert state(registry) is ProcessState.suspect


@pytest.mark.parametrize("turn_s", [0.3, 0.54, 0.6, 0.9])
def test_a_coordinator_that_is_always_slow_finds_who_is_silent_all_the_same(registry, turn_s):
    ready(registry, name="engine-0")
    ready(registry, name="engine-1", rank=1)
    for turn in range(1, 50):
        registry.heartbeat(Heartbeat("engine-1", 1, turn), turn * turn_s)
        registry.tick(turn * turn_s)
    assert state(registry, "engine-0") is ProcessState.suspect
    assert state(registry, "engine-1") is ProcessState.ready


@pytest.mark.parametrize("interval_s", [0.25, 0.51, 2.0])
def test_looks_that_are_far_apart_as_configured_are_not_sleep(interval_s):
    registry = Registry(silence_s=1.0, heartbeat_s=0.2, interval_s=interval_s)
    ready(registry)
    now = 0.0
    while now <= 1.0:
        now += interval_s
        registry.tick(now)
    assert state(registry) is ProcessState.suspect


PLANNED = (planned(), planned("engine-1", 1))
INCARNATIONS = {"engine-0": 1, "engine-1": 3}


@pytest.fixture
def restarted() -> Registry:
    return registry_of(incarnation=2)


def test_a_restarted_coordinator_asks_everybody_and_has_a_higher_epoch(registry, restarted):
    assert restarted.epoch > registry.epoch + 1_000_000
    assert not restarted.knows("engine-0", 1)
    assert not restarted.knows(LAUNCHER, 0)
    restarted.apply_plan(told(*PLANNED, incarnations=INCARNATIONS), 0.0)
    assert restarted.knows(LAUNCHER, 0)


def test_a_restarted_coordinator_settles_when_all_have_registered_as_they_were(restarted):
    restarted.apply_plan(told(*PLANNED, incarnations=INCARNATIONS), 0.0)
    restarted.register(msgspec.structs.replace(hello(), phase=Phase.ready), 0.1)
    restarted.tick(0.2)
    assert not restarted.is_settled
    other = hello("engine-1", 3, 1)
    restarted.register(msgspec.structs.replace(other, phase=Phase.warming_up), 0.2)
    restarted.tick(0.3)
    assert restarted.is_settled
    assert state(restarted, "engine-0") is ProcessState.ready
    assert state(restarted, "engine-1") is ProcessState.starting
    assert restarted.membership(0.3).missing == []


def test_a_restarted_coordinator_waits_two_heartbeats_for_those_that_do_not_register(restarted):
    restarted.apply_plan(told(*PLANNED, incarnations=INCARNATIONS), 0.0)
    restarted.register(msgspec.structs.replace(hello(), phase=Phase.ready), 0.1)
    restarted.tick(0.45)
    assert not restarted.is_settled
    restarted.tick(0.55)
    assert restarted.is_settled
    assert state(restarted, "engine-1") is ProcessState.suspect


def test_a_restarted_coordinator_waits_longer_while_others_register_but_not_for_ever(restarted):
    names = [f"engine-{rank}" for rank in range(10)]
    plan = told(
        *(planned(name, rank) for rank, name in enumerate(names)),
        incarnations=dict.fromkeys(names, 1),
    )
    restarted.apply_plan(plan, 0.0)
    for rank, now in enumerate((0.3, 0.6, 0.9)):
        restarted.register(hello(names[rank], rank=rank), now)
        restarted.tick(now + 0.05)
        assert not restarted.is_settled
    restarted.tick(1.05)
    assert restarted.is_settled


def test_a_restarted_coordinator_suspects_who_does_not_register_until_it_does(restarted):
    restarted.apply_plan(told(*PLANNED, incarnations=INCARNATIONS), 0.0)
    restarted.register(msgspec.structs.replace(hello(), phase=Phase.ready), 0.1)
    for now in (0.4, 0.8, 1.1):
        restarted.tick(now)
    silent = next(m for m in restarted.members(1.1) if m.name == "engine-1")
    assert (silent.state, silent.incarnation, silent.rank) == (ProcessState.suspect, 3, 1)
    assert restarted.drift() == []
    assert not restarted.knows("engine-1", 3)
    back = msgspec.structs.replace(hello("engine-1", 3, 1), phase=Phase.ready)
    assert restarted.register(back, 2.0)
    assert state(restarted, "engine-1") is ProcessState.ready


def test_who_ends_before_it_registers_again_is_lost_for_ever(restarted):
    restarted.apply_plan(told(*PLANNED, incarnations=INCARNATIONS), 0.0)
    restarted.register(msgspec.structs.replace(hello(), phase=Phase.ready), 0.1)
    for now in (0.4, 0.8, 1.1):
        restarted.tick(now)
    restarted.lose("engine-1", 3, "killed by SIGKILL", 1.2)
    assert state(restarted, "engine-1") is ProcessState.lost
    assert not restarted.register(hello("engine-1", 3, 1), 1.3)
    assert restarted.register(hello("engine-1", 4, 1), 1.4)
