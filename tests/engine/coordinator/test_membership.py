"""The registry's story, with a clock that the tests turn."""

import pytest

from engine.config import ProcessSpec, Role, WorkerSpec
from engine.coordinator.membership import Registry
from engine.protocol import DeploymentState, Heartbeat, Phase, ProcessState, Register


def hello(name="engine-0", incarnation=1, rank=0, role=Role.engine, devices=()) -> Register:
    return Register(name, incarnation, role, rank, "head", 4711, list(devices), {}, {})


@pytest.fixture
def registry() -> Registry:
    return Registry(silence_s=1.0, progress_s=2.0)


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
    registry.tick(0.9)
    assert state(registry) is ProcessState.ready
    registry.tick(1.1)
    [member] = registry.members(1.1)
    assert (member.state, member.reason) == (ProcessState.suspect, "silent for 1.1 s")
    registry.heartbeat(Heartbeat("engine-0", 1), 1.2)
    assert state(registry) is ProcessState.ready


def test_a_rank_with_work_and_no_progress_is_suspect_until_it_moves(registry):
    ready(registry)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5):
        registry.heartbeat(Heartbeat("engine-0", 1, 7, 3), now)
        registry.tick(now)
    assert state(registry) is ProcessState.ready  # the first beat brought progress: 0 to 7
    registry.heartbeat(Heartbeat("engine-0", 1, 7, 3), 2.6)
    registry.tick(2.6)
    [member] = registry.members(2.6)
    assert (member.state, member.reason) == (
        ProcessState.suspect,
        "has work but makes no progress for 2.1 s",
    )
    registry.heartbeat(Heartbeat("engine-0", 1, 8, 3), 2.8)
    assert state(registry) is ProcessState.ready


def test_an_idle_rank_needs_no_steps(registry):
    ready(registry)
    for now in (1.0, 2.0, 3.0):
        registry.heartbeat(Heartbeat("engine-0", 1, 7, 0), now)
        registry.tick(now)
    assert state(registry) is ProcessState.ready


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
    registry.begin_drain()
    registry.drained("frontend-0", 1, 2.0)
    assert state(registry, "frontend-0") is ProcessState.drained
    assert registry.membership(2.0).state is DeploymentState.draining


def planned(name="engine-0", rank=0, devices=()) -> ProcessSpec:
    worker = WorkerSpec(
        index=0, node="head", group="rank-0", bundle=0, devices=tuple(devices), num_threads=1
    )
    return ProcessSpec(name=name, role=Role.engine, node="head", rank=rank, workers=(worker,))


def test_planned_processes_that_have_not_registered_are_missing(registry):
    registry.apply_plan([planned(), planned("engine-1", 1)])
    registry.register(hello(), 0.0)
    assert registry.membership(0.0).missing == ["engine-1"]


def test_what_is_not_as_planned_is_told(registry):
    registry.apply_plan([planned(devices=[0])])
    registry.register(hello(devices=[1]), 0.0)
    registry.register(hello("engine-7", rank=7), 0.0)
    assert registry.drift() == [
        "engine-0: devices [1], planned [0]",
        "engine-7 registered, but is not in the plan",
    ]


def test_there_is_no_drift_before_the_plan_is_known(registry):
    registry.register(hello(), 0.0)
    assert registry.drift() == []
