"""A cluster whose nodes come and go: a head with one CPU, and what joins it."""

import itertools
import re
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.launcher.ray.clusters import HandStarted, Onlooker, hand_started, members_of
from tests.running import ask, assert_ended, complete, launched

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(180)]
NOTICED_S = 15.0
GROWING = ("topology=remote_only", "dp=2", "model=dummy", "backend.grows=true")
names = (f"late-{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def small(_token: None) -> Iterator[HandStarted]:
    with hand_started(1) as cluster:
        yield cluster


@pytest.fixture
def empty(small: HandStarted) -> Iterator[HandStarted]:
    """The head alone, nothing running before and after."""
    watching = Onlooker(small.address)
    yield small
    watching.assert_as_before()
    watching.close()


@pytest.fixture
def late(empty: HandStarted) -> Iterator[str]:
    """Name of a node that may join; it is gone afterwards."""
    name = next(names)
    yield name
    for raylet in empty.raylets(name):
        raylet.terminate()
        assert_ended([raylet])


def test_a_cluster_that_does_not_grow_in_time_ends_the_start(empty, runtime):
    where = (f"backend.address={empty.address}", "backend.grow_deadline_s=2")
    answer = ask(*GROWING, *where, "engine.threads=1", runtime_directory=runtime)
    assert answer.returncode == 1, answer.stderr
    assert "room for 0 of 2 ranks that wait for 1 CPU each" in answer.stderr
    assert "the cluster has not grown within 2 s (backend.grow_deadline_s)" in answer.stderr
    assert "room for 0 of 2 ranks on other nodes, of which there are none" in answer.stderr
    assert "hint: backend.grow_deadline_s=4" in answer.stderr
    assert not (runtime / "flotilla").exists()


def test_ctrl_c_while_it_waits_for_nodes_leaves_nothing(empty, runtime):
    where = f"backend.address={empty.address}"
    with launched(*GROWING, where, runtime_directory=runtime) as launcher:
        launcher.wait_for("the cluster has room for 0 of 2 ranks")
        launcher.signal(signal.SIGINT)
        assert launcher.end() == 130, launcher.output
    assert launcher.lines[-1] == "interrupted\n"
    assert not launcher.directory.exists()


def test_split_needs_another_node(empty, runtime):
    where = (f"backend.address={empty.address}", "model=dummy")
    answer = ask("topology=split", "dp=2", *where, runtime_directory=runtime)
    assert answer.returncode == 2, answer.stderr
    assert "on other nodes, of which there are none" in answer.stderr


def test_it_serves_on_a_node_that_joins_and_ends_when_that_dies(empty, late, runtime, client_of):
    where = f"backend.address={empty.address}"
    with launched(*GROWING, where, runtime_directory=runtime) as launcher:
        launcher.wait_for("the cluster has room for 0 of 2 ranks")
        empty.add_node(late, 2)
        client = client_of(launcher.ready())
        engines = members_of(client, "engine").values()
        assert [member["node"] for member in engines] == [late, late]
        assert complete(client).status_code == 200
        family = launcher.family()
        family += [psutil.Process(member["pid"]) for member in engines]
        [raylet] = empty.raylets(late)
        raylet.kill()
        launcher.wait_for("engine-. ended: .*: ending", within_s=NOTICED_S)
        assert launcher.end() == 1
        assert_ended(family)
    assert launcher.output.count("the cluster has room for 2 of 2 ranks") == 1
    lost = rf"engine-. ended: {late} is lost, with ranks 0, 1: \S+: Connection refused"
    assert re.search(lost, launcher.output)


def test_a_node_that_dies_while_ranks_start_on_it_ends_the_start(empty, late, runtime):
    where = f"backend.address={empty.address}"
    empty.add_node(late, 2)
    overrides = ("topology=remote_only", "dp=2", "model=tiny", where)
    with launched(*overrides, runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-. +importing")
        family = launcher.family()
        [raylet] = empty.raylets(late)
        raylet.kill()
        assert launcher.end() == 1
        assert_ended(family)
    assert re.search(rf"engine-. ended: .*\b{late}\b", launcher.output)


def test_a_node_that_cannot_have_the_model_is_named_with_the_path(empty, late, runtime, tmp_path):
    file = tmp_path / "file"
    file.touch()
    empty.add_node(late, 1, XDG_CACHE_HOME=f"{file}/cache")
    overrides = ("topology=remote_only", "model=tiny", f"backend.address={empty.address}")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end() == 1
    problem = f"ModelError: cannot write the cache {file}/cache/flotilla/models: Not a directory"
    assert f"engine-0 ended: {problem} (on {late})" in launcher.output
    assert "hint: XDG_CACHE_HOME=DIR" in launcher.output  # in the last lines of its log
