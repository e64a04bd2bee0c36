"""What a cluster cannot do: exit code 2, and nothing was made; or groups that stay pending."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from engine.checkpoints.tiny import TINY_FACTS
from engine.config import ModelKind
from launcher.actions.serve import serve
from launcher.config import RayOptions, TopologyKind, TopologyOptions
from launcher.errors import Interrupted, StartFailed
from launcher.executors.base import Means
from launcher.executors.ray.groups import Groups
from launcher.executors.ray.session import Session
from launcher.plan import Bundle, DeploymentPlan, PlacementGroup
from launcher.planner import make_plan
from launcher.this_machine import local_cluster
from tests.launcher.ray.clusters import DEADLINE_S, groups_that_exist, until
from tests.launcher.samples import config_of
from tests.running import ask

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _is_left_as_found(onlooker) -> Iterator[None]:
    yield
    onlooker.assert_as_before()


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (
            "topology=auto dp=12",
            "room for 11 of 12 ranks; a rank takes 1 CPU",
            "dp=11",
        ),
        (
            "topology=remote_only dp=8",
            "room for 7 of 8 ranks on other nodes",
            "dp=7",
        ),
        (
            "topology=split dp=6 topology.dp_local=5",
            "room for 4 of 5 ranks on the head",
            "topology.dp_local=4",
        ),
        (
            "topology=remote_only dp=2 engine.threads=4 topology.strategy=spread",
            "right: 4 CPUs, 1 in use by neighbour: lacks 1 CPU for a rank",
            "dp=1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(shared, runtime, overrides, message, hint):
    where = (f"backend.address={shared.address}", "model=dummy")
    answer = ask("engine.threads=1", *where, *overrides.split(), runtime_directory=runtime)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    hints = answer.stderr.partition("hint: ")[2]
    assert hint in hints
    assert not (runtime / "flotilla").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9: Connection refused"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379"),
        ("ray://127.0.0.1:10001", "backend.address must be host:port"),
        ("127.0.0.1", "backend.address must be host:port: 127.0.0.1"),
    ],
)
@pytest.mark.parametrize("way", ["backend.address", "RAY_ADDRESS"])
def test_an_address_without_a_cluster_is_refused(runtime, monkeypatch, way, address, message):
    overrides = ["topology=auto", "model=dummy"]
    if way == "RAY_ADDRESS":
        monkeypatch.setenv(way, address)
    else:
        overrides.append(f"{way}='{address}'")
    answer = ask(*overrides, runtime_directory=runtime)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    assert "hint: " in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_cluster_that_must_be_there_and_is_not_is_refused(runtime):
    answer = ask("topology=auto", "cluster=existing", "model=dummy", runtime_directory=runtime)
    assert answer.returncode == 2
    assert "no Ray cluster runs on this machine" in answer.stderr
    assert "hint: ray start --head" in answer.stderr


def test_split_is_refused_where_there_is_only_a_head(runtime):
    one = ("cluster=emulated", "cluster.nodes=1")
    answer = ask("topology=split", "dp=2", *one, "model=dummy", runtime_directory=runtime)
    assert answer.returncode == 2
    assert "on other nodes, of which there are none" in answer.stderr
    assert "topology=" in answer.stderr.partition("hint: ")[2]


def group_of(name: str, node: str, num_cpus: int) -> PlacementGroup:
    return PlacementGroup(
        name=name, strategy="STRICT_PACK", bundles=(Bundle(node=node, resources={"CPU": num_cpus}),)
    )


def test_groups_that_stay_pending_are_named_with_what_they_wait_for(onlooker):
    session = onlooker.session
    groups = Groups("flotilla-test")
    wanted = [group_of("rank-0", "left", 2), group_of("rank-1", "right", 4)]
    with pytest.raises(StartFailed) as failure:
        session.call(lambda: groups.make(wanted, session.nodes, 0.5))
    assert str(failure.value).startswith("placement groups do not stand after 0.5 s")
    assert "rank-1 waits for 4 CPU on right, which has free: 3 CPU" in str(failure.value)
    assert "rank-0" not in str(failure.value)
    assert session.call(groups.remove) == []
    assert session.call(groups.remove) == []


def test_groups_that_stay_pending_can_be_given_up(onlooker):
    session = onlooker.session
    groups = Groups("flotilla-test")
    wanted = [group_of("rank-0", "right", 4)]
    threads = [
        threading.Thread(
            target=lambda: session.call(lambda: groups.make(wanted, session.nodes, DEADLINE_S))
        )
    ]
    began = time.monotonic()
    threads[0].start()
    until(lambda: groups._made)
    groups.is_ending = True
    threads[0].join(DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S
    assert session.call(groups.remove) == []


@pytest.fixture
def overtaken(shared, onlooker, runtime, monkeypatch) -> Iterator[tuple[DeploymentPlan, Session]]:
    """A plan, and others who have taken its place since it was made."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    config = config_of(
        topology=TopologyOptions(kind=TopologyKind.remote_only),
        backend=RayOptions(),
        model__kind=ModelKind.dummy,
        engine__threads=1,
        frontend__port=0,
        dp=2,
    )
    session = Session(shared.address)
    session.connect()
    plan = make_plan(
        config,
        TINY_FACTS,
        session.discover(local_cluster()),
        model_name="dummy",
        passed_environment=(),
    )
    others = Groups("others")
    taken = [group_of("left", "left", 4), group_of("right", "right", 3)]
    session.call(lambda: others.make(taken, session.nodes, DEADLINE_S))
    yield plan, session
    onlooker.session.call(others.remove)


def test_a_launcher_whose_groups_stay_pending_ends_and_removes_them(overtaken, onlooker, runtime):
    plan, session = overtaken
    means = Means(start_deadline_s=DEADLINE_S, group_deadline_s=1, session=session)
    with pytest.raises(StartFailed, match=r"do not stand after 1 s \(backend.group_deadline_s\)"):
        serve(plan, means)
    assert set(onlooker.session.call(groups_that_exist)) == {
        *("neighbour", "others-left", "others-right")
    }


def test_ctrl_c_while_groups_stay_pending_removes_them(overtaken, onlooker):
    plan, session = overtaken

    def interrupt() -> None:
        until(lambda: len(onlooker.session.call(groups_that_exist)) == 5)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    means = Means(start_deadline_s=DEADLINE_S, group_deadline_s=DEADLINE_S, session=session)
    with pytest.raises(Interrupted):
        serve(plan, means)
    interrupter.join()
    assert len(onlooker.session.call(groups_that_exist)) == 3
