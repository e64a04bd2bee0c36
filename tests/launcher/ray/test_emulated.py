"""Clusters that a launcher starts on this machine, which end with it, however it ends."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.launcher.ray.clusters import members_of, until
from tests.running import Launcher, assert_ended, complete, launched, serving

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(180)]
NOTICED_S = 15.0
SPLIT = ("topology=split", "dp=2", "model=dummy")


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where clusters have their files: short, since socket paths are; empty again afterwards."""
    with tempfile.TemporaryDirectory(prefix="f") as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)
        assert not list(Path(path).glob("fl-*"))


def family_of(launcher: Launcher) -> list[psutil.Process]:
    """All that it has started, the cluster's processes too."""
    return psutil.Process(launcher.process.pid).children(recursive=True)


def cluster_process(launcher: Launcher, program: str, said: str = "") -> psutil.Process:
    """The only process of a program, `raylet`, with an argument in which something is found."""
    [found] = [
        process
        for process in family_of(launcher)
        if process.cmdline()[0].endswith(f"/{program}")
        and any(said in argument for argument in process.cmdline())
    ]
    return found


def supervisor_of(launcher: Launcher) -> psutil.Process:
    [found] = [
        process
        for process in launcher.family()
        if "launcher.executors.ray.emulated" in process.cmdline()
    ]
    return found


def test_a_cluster_of_its_own_serves_and_ends_with_it(runtime):
    with serving(*SPLIT, "cluster=emulated", runtime_directory=runtime) as (launcher, client):
        engines = members_of(client, "engine").values()
        assert [member["node"] for member in engines] == ["head", "node-1"]
        assert client.get("/plan").json()["drift"] == []
        assert complete(client).status_code == 200
        family = family_of(launcher)
        assert {member["pid"] for member in engines} < {process.pid for process in family}
    assert_ended(family)


@pytest.mark.parametrize(
    ("victim", "cause"),
    [
        ("gcs_server", "the Ray cluster is lost.*: Connection refused"),
        ("raylet", "node-1"),
        ("supervisor", "the supervisor of the emulated cluster was killed"),
    ],
)
def test_whatever_of_the_cluster_dies_ends_the_deployment(runtime, victim, cause):
    with launched(*SPLIT, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = family_of(launcher)
        if victim == "supervisor":
            process = supervisor_of(launcher)
        else:
            said = "node-1" if victim == "raylet" else ""
            process = cluster_process(launcher, victim, said)
        process.kill()
        launcher.wait_for(f"engine-. ended: .*{cause}", within_s=NOTICED_S)
        assert launcher.end() == 1
        assert_ended(family)
    assert "Error executing job" not in launcher.output


def test_a_node_that_dies_while_it_starts_ends_the_start(runtime):
    with launched(*SPLIT, "model=tiny", runtime_directory=runtime) as launcher:
        launcher.wait_for("making 2 placement groups")
        family = family_of(launcher)
        cluster_process(launcher, "raylet", "node-1").kill()
        assert launcher.end() == 1
        assert_ended(family)
    assert "Error executing job" not in launcher.output


def test_a_launcher_that_is_killed_leaves_nothing_of_its_cluster(runtime, temporary):
    with launched(*SPLIT, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = family_of(launcher)
        launcher.process.kill()
        assert_ended(family)
        until(lambda: not launcher.directory.exists() and not list(temporary.glob("fl-*")))


@pytest.mark.parametrize("is_there", [None, "gcs_server", "raylet"])
def test_ctrl_c_while_the_cluster_starts_leaves_nothing(runtime, is_there):
    with launched(*SPLIT, runtime_directory=runtime) as launcher:
        launcher.wait_for("starting 2 emulated nodes")
        if is_there is not None:
            until(lambda: any(process.name() == is_there for process in family_of(launcher)))
        family = family_of(launcher)
        launcher.signal(signal.SIGINT)
        assert launcher.end() == 130, launcher.output
        assert_ended(family)
        assert not launcher.directory.exists()
    assert launcher.lines[-1] == "interrupted\n"
