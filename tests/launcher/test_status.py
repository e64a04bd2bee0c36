"""`action=status`: plan beside what is there, from the launcher itself."""

import re
import signal
import time
from typing import Any

import msgspec
import pytest

from engine.config import ProcessSpec, Role
from engine.protocol import DeploymentState, Member, Membership, Phase, ProcessState, RankLoad
from launcher.control import Stage, State
from launcher.control_client import get_state
from launcher.plan import DeploymentPlan
from launcher.show import rendered
from launcher.status import STALE_S, Status, duration, status_of, status_table
from tests.launcher.samples import (
    LLAMA_8B,
    config_of,
    gpu_head,
    node,
    on_ray,
    plan_for,
    ray_cluster,
)
from tests.running import ask, launched, serving

DEADLINE_S = 30.0


def member_of(spec: ProcessSpec, **changes: Any) -> Member:
    """The process as it was planned, ready."""
    given: dict[str, Any] = {
        "name": spec.name,
        "role": spec.role,
        "rank": spec.rank,
        "incarnation": 1,
        "node": spec.node,
        "pid": 7,
        "devices": [device for worker in spec.workers for device in worker.devices],
        "state": ProcessState.ready,
        "phase": Phase.ready,
        "since_s": 1.0,
    }
    return Member(**(given | changes))


def state_of(plan: DeploymentPlan, *members: Member, **changes: Any) -> State:
    """A deployment that serves, with these members in place of those that are as planned."""
    there = {spec.name: member_of(spec) for spec in plan.processes}
    there |= {member.name: member for member in members}
    membership = Membership(1, DeploymentState.serving, list(there.values()), [], [])
    given: dict[str, Any] = {
        "version": "1",
        "pid": 5,
        "stage": Stage.serving,
        "uptime_s": 90.0,
        "addresses": ["http://127.0.0.1:8000"],
        "plan": plan,
        "membership": membership,
        "membership_age_s": 0.25,
        "incarnations": {spec.name: 1 for spec in plan.processes},
    }
    return State(**(given | changes))


def line_of(name: str, state: State) -> str:
    """Its line in the table, single blanks between words."""
    lines = rendered(status_table(status_of(state))).splitlines()
    [line] = [" ".join(line.split()) for line in lines if line.split()[:1] == [name]]
    return line


def test_it_is_ready_when_every_process_is():
    state = state_of(plan_for(config_of(dp=2)))
    assert status_of(state).is_ready
    assert line_of("engine-1", state) == "engine-1 1 head ready 1.2 s 7 cpu 1 0"


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": Stage.draining},
        {"membership": None},
        {"membership_age_s": STALE_S},
        {"membership": Membership(1, DeploymentState.serving, [], ["coordinator"], [])},
    ],
)
def test_it_is_not_ready_without_the_coordinators_word_of_every_process(changes: dict[str, Any]):
    assert not status_of(state_of(plan_for(config_of()), **changes)).is_ready


def test_a_rank_has_its_load_if_that_is_of_its_incarnation():
    plan = plan_for(config_of(dp=2))
    [first, second] = plan.processes[-2:]
    loads = [RankLoad(rank, 1, 3, 4, 0, 0, 0.25, 0.1) for rank in (0, 1)]
    state = state_of(
        plan, member_of(first, num_requests=7), member_of(second, incarnation=2), loads=loads
    )
    assert line_of(first.name, state) == "engine-0 0 head ready 1.2 s 7 cpu 1 7 3 25%"
    assert line_of(second.name, state) == "engine-1 1 head ready 1.2 s 7 cpu 2 0"


def test_a_difference_from_the_plan_is_shown_beside_it():
    plan = plan_for(config_of(dp=2), LLAMA_8B, gpu_head(2))
    stray = member_of(plan.processes[-1], node="other", devices=[0])
    state = state_of(plan, stray)
    assert (
        line_of("engine-1", state)
        == "engine-1 1 head, is other ready 1.2 s 7 cuda 1, is cuda 0 1 0"
    )
    members = [member_of(spec) for spec in plan.processes]
    drifting = Membership(1, DeploymentState.serving, members, [], ["engine-1: node other"])
    state = state_of(plan, membership=drifting)
    assert not status_of(state).is_ready
    assert "drift: engine-1: node other\n" in rendered(status_table(status_of(state)))


def test_where_only_their_number_is_planned_the_devices_found_are_named():
    cluster = ray_cluster(node("head", gpus=1), node("far", gpus=1))
    plan = plan_for(on_ray("split", dp=2), LLAMA_8B, cluster)
    spec = plan.processes[-1]
    assert spec.workers[0].devices == ()
    assert "1 GPU: cuda 3" in line_of(spec.name, state_of(plan, member_of(spec, devices=[3])))
    assert "1 GPU, is cpu" in line_of(spec.name, state_of(plan, member_of(spec, devices=[])))


def test_a_process_that_has_not_registered_is_missing():
    plan = plan_for(config_of())
    there = [member_of(spec) for spec in plan.processes if spec.role is not Role.engine]
    membership = Membership(1, DeploymentState.serving, there, ["engine-0"], [])
    state = state_of(plan, membership=membership, incarnations={"engine-0": 2})
    assert line_of("engine-0", state) == "engine-0 0 head missing cpu 2"
    assert not status_of(state).is_ready


def test_a_process_that_starts_or_is_suspect_says_what_it_does_or_why():
    plan = plan_for(config_of())
    spec = plan.processes[-1]
    loading = member_of(spec, state=ProcessState.starting, phase=Phase.loading_weights)
    assert "starting: loading weights" in line_of(spec.name, state_of(plan, loading))
    silent = member_of(spec, state=ProcessState.suspect, reason="silent for 2.0 s", incarnation=3)
    assert line_of(spec.name, state_of(plan, silent)).endswith(
        "suspect 1.2 s 7 cpu 3 0 silent for 2.0 s"
    )


def test_long_names_are_not_cut_where_no_terminal_is():
    plan = plan_for(config_of())
    name = "node-" + "x" * 300
    state = state_of(plan, member_of(plan.processes[-1], node=name))
    assert f"head, is {name} ready" in line_of("engine-0", state)


def test_what_the_launcher_sends_reads_back():
    state = state_of(plan_for(config_of(dp=2), LLAMA_8B, gpu_head(2)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State) == state


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (42.9, "42 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def until_suspect(name: str, processes: set[str]) -> None:
    """Asks until these processes of a deployment are suspect, and no others."""
    deadline = time.monotonic() + DEADLINE_S
    while processes != (found := suspect(name)):
        assert time.monotonic() < deadline, found


def suspect(name: str) -> set[str]:
    processes = status_of(get_state(name)).processes
    return {process.name for process in processes if process.state == "suspect"}


@pytest.mark.timeout(120)
def test_it_tells_of_a_deployment_from_its_start_on(runtime, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        question = ("action=status", f"name={launcher.name}")
        launcher.wait_for("frontend-0 +importing")
        front_end = launcher.children()["frontend-0"]
        front_end.suspend()
        starting = ask(*question, runtime_directory=runtime)
        assert starting.returncode == 1, starting.stderr
        assert f"{launcher.name}: starting at http://" in starting.stdout
        assert re.search("frontend-0 .* head +starting: importing", starting.stdout)
        front_end.resume()
        url = launcher.ready()

        ready = ask(*question, "status.format=json", "dp=2", runtime_directory=runtime)
        assert ready.returncode == 0, ready.stdout
        assert ready.stderr == "warning: dp=2 has no effect with action=status\n"
        status = msgspec.json.decode(ready.stdout, type=Status)
        assert status.addresses == [url]
        assert [each.kv_usage for each in status.processes if each.rank is not None] == [0.0, 0.0]
        assert {each.name: each.pid for each in status.processes} == {
            name: child.pid for name, child in launcher.children().items()
        }

        for name in ("engine-1", "frontend-0"):  # no front end is asked
            launcher.children()[name].suspend()
        until_suspect(launcher.name, {"engine-1", "frontend-0"})
        hung = ask(*question, runtime_directory=runtime)
        assert hung.returncode == 1
        assert hung.stdout.count("suspect") == 2
        assert "silent for " in hung.stdout


def test_what_does_not_run_is_refused_and_what_does_is_named(runtime):
    nothing = ask("action=status", runtime_directory=runtime)
    assert nothing.returncode == 2
    assert nothing.stderr == (
        "no deployment of this name runs: flotilla\nhint: action=serve name=flotilla starts it\n"
    )
    with serving("model=dummy", runtime_directory=runtime) as (launcher, _):
        for action in ("status", "stop"):
            other = ask(f"action={action}", "name=other", runtime_directory=runtime)
            assert other.returncode == 2
            assert other.stderr == (
                f"no deployment of this name runs: other (running: {launcher.name})\n"
                "hint: name=NAME of the one that is meant\n"
            )


def test_what_a_killed_launcher_left_does_not_run(runtime):
    with launched("model=dummy", runtime_directory=runtime) as launcher:
        launcher.ready()
        for child in launcher.children().values():  # so that nobody tidies up
            child.kill()
        launcher.process.kill()
        launcher.process.wait()
    assert (launcher.directory / "control").exists()
    for action in ("status", "stop"):
        asked = ask(f"action={action}", f"name={launcher.name}", runtime_directory=runtime)
        assert asked.returncode == 2
        assert f"no deployment of this name runs: {launcher.name}\n" in asked.stderr


def test_a_launcher_that_does_not_answer_is_named(runtime):
    with launched("model=dummy", runtime_directory=runtime) as launcher:
        launcher.ready()
        launcher.process.send_signal(signal.SIGSTOP)
        asked = ask("action=status", f"name={launcher.name}", runtime_directory=runtime)
    assert asked.returncode == 1
    assert f"launcher pid {launcher.process.pid} does not answer for 5 s" in asked.stderr
