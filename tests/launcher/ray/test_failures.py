"""What fails on a cluster of others: the cause is named, exit code 1, nothing is left behind."""

import resource
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from tests.launcher.ray.clusters import members_of, until
from tests.running import assert_ended, assert_nothing_left, launched

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
NOTICED_S = 15.0
SPLIT = ("topology=split", "dp=2")


@pytest.fixture(autouse=True)
def _is_left_as_found(onlooker) -> Iterator[None]:
    yield
    onlooker.assert_as_before()


def process_of(client, name: str) -> psutil.Process:
    return psutil.Process(members_of(client, "engine")[name]["pid"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_actor_whose_process_ends_fails_its_requests_and_ends_the_deployment(
    shared, runtime, client_of, number
):
    model = ("model=dummy", "model.step_s=0.05", f"backend.address={shared.address}")
    with launched(*SPLIT, *model, runtime_directory=runtime) as launcher:
        client = client_of(launcher.ready())
        family = launcher.family()
        engine = process_of(client, "engine-1")
        pinned = {"X-Data-Parallel-Rank": "1"}
        body = {"model": "dummy", "prompt": "hi", "max_tokens": 1900, "stream": True}
        with client.stream("POST", "/v1/completions", json=body, headers=pinned) as response:
            events = response.iter_lines()
            next(events)
            engine.send_signal(number)
            rest = [line for line in events if line]
        assert '"error"' in rest[-2]
        launcher.wait_for("engine-1 ended", within_s=NOTICED_S)
        assert launcher.end() == 1
        assert_ended(family)
    assert "engine-1 ended: its process was killed or crashed (on left)" in launcher.output


def test_an_exception_in_the_loop_of_an_actor_is_told_as_it_was_raised(shared, runtime, client_of):
    where = ("model=dummy", "topology=remote_only", f"backend.address={shared.address}")
    with launched(*where, runtime_directory=runtime) as launcher:
        client = client_of(launcher.ready())
        engine = process_of(client, "engine-0")
        _, most = engine.rlimit(resource.RLIMIT_NOFILE)
        engine.rlimit(resource.RLIMIT_NOFILE, (16, most))
        launcher.children()["frontend-0"].kill()  # for the next one a socket must be opened
        launcher.wait_for("engine-0 ended", within_s=NOTICED_S)
        assert launcher.end() == 1
    assert "engine-0 ended: ZMQError: Too many open files (on left)" in launcher.output
    assert "Traceback" in launcher.output  # the last lines of its log


def test_an_actor_that_is_killed_while_it_starts_ends_the_start(shared, onlooker, runtime):
    where = ("model=tiny", f"backend.address={shared.address}")
    with launched(*SPLIT, *where, runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-1 +importing")
        family = launcher.family()
        psutil.Process(onlooker.actors()["engine-1"][1]).kill()
        assert launcher.end() == 1
        assert_ended(family)
    assert "engine-1 ended: its process was killed or crashed (on left)" in launcher.output
    assert "Error executing job" not in launcher.output


def test_a_launcher_that_is_killed_leaves_nothing(shared, runtime, client_of):
    where = ("model=dummy", f"backend.address={shared.address}")
    with launched(*SPLIT, *where, runtime_directory=runtime) as launcher:
        client = client_of(launcher.ready())
        family = launcher.family()
        family += [psutil.Process(m["pid"]) for m in members_of(client, "engine").values()]
        launcher.process.kill()
        launcher.process.wait()
        assert_nothing_left(launcher, family)


@pytest.mark.parametrize(
    "moment", ["making 2 placement groups", "engine-0 +importing", "frontend-0 +connecting"]
)
def test_ctrl_c_while_it_starts_leaves_nothing(shared, runtime, moment):
    where = ("model=tiny", f"backend.address={shared.address}")
    with launched(*SPLIT, *where, runtime_directory=runtime) as launcher:
        launcher.wait_for(moment)
        family = launcher.family()
        launcher.signal(signal.SIGINT)
        assert launcher.end() == 130, launcher.output
        assert_nothing_left(launcher, family)
    assert "Traceback" not in launcher.output


def test_ctrl_c_while_it_connects_leaves_nothing(shared, runtime):
    where = ("model=tiny", f"backend.address={shared.address}")
    port = int(shared.address.rpartition(":")[2])
    with launched(*SPLIT, *where, runtime_directory=runtime) as launcher:
        process = psutil.Process(launcher.process.pid)
        until(lambda: [c for c in process.net_connections() if c.raddr[1:] == (port,)])
        launcher.signal(signal.SIGINT)
        try:
            code = launcher.process.wait(10)
        except subprocess.TimeoutExpired:  # Ray has swallowed it: seen once in many runs
            launcher.signal(signal.SIGINT)
            code = launcher.end()
        assert code in (0, 130), launcher.output
        assert not launcher.directory.exists()
    assert "Traceback" not in launcher.output
