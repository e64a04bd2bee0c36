"""Deployments on machines with addresses of their own, and what happens when one is cut off."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import httpx2 as httpx
import psutil
import pytest

from tests.launcher.ray.namespaces import NO_TOKEN, Cluster, Machine, Network, why_not
from tests.running import complete, launched, random_model, serving, stream

pytestmark = [pytest.mark.long, pytest.mark.netns, pytest.mark.ray, pytest.mark.timeout(180)]

NUM_CPUS = 2
"""Of each machine: so many ranks fit."""
CUT_OFF_S = 20.0
"""A machine that has been cut off must be known so soon: 4 s unless this one is very busy."""
SETTLE_S = 60.0
"""What Ray ends by itself is gone within this time."""
ONE_EACH = ("topology.dp_local=1", "topology.strategy=spread", "dp=3")


@pytest.fixture(scope="module")
def standing() -> Iterator[Cluster]:
    with ray_on(3) as made:
        yield made


@pytest.fixture
def cluster(standing: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Ray on three machines, the first of which this thread is on; untouched afterwards."""
    with used(standing, monkeypatch):
        yield standing


@contextlib.contextmanager
def ray_on(num_machines: int, is_v6: bool = False) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    network = Network(num_machines)
    try:
        with contextlib.closing(Cluster(network.machines, NUM_CPUS, is_v6)) as made:
            yield made
    finally:
        network.close()


@contextlib.contextmanager
def used(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This thread is on the head meanwhile; what is there afterwards is what was there before."""
    for name, value in {"RAY_ADDRESS": cluster.address, **NO_TOKEN}.items():
        monkeypatch.setenv(name, value)
    before = of_ray(*cluster.machines)
    with cluster.machines[0].entered():
        yield
    until(lambda: of_ray(*cluster.machines) == before)
    free = {"alive": len(cluster.machines), "used": [], "groups": []}
    until(lambda: cluster.look() == free)


def of_ray(*machines: Machine) -> set[int]:
    """What runs there but for workers that nobody uses: Ray makes and ends those as it likes."""
    lines = {pid: line for each in machines for pid, line in each.processes().items()}
    unused = ("ray::IDLE", "default_worker.py")
    return {pid for pid, line in lines.items() if not any(word in line for word in unused)}


def until(holds: Callable[[], bool], within_s: float = SETTLE_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)


def client_of(url: str, rank: int) -> httpx.Client:
    """Its requests go to that rank."""
    headers = {"X-Data-Parallel-Rank": str(rank)}
    return httpx.Client(base_url=url, headers=headers, timeout=30)


def pids(url: str) -> dict[str, int]:
    """Of all processes, as the deployment tells."""
    actual = httpx.get(f"{url}/plan", timeout=30).json()["actual"]
    return {process["name"]: process["pid"] for process in actual}


def listens_on(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports, on the machine that this thread is on."""
    found = psutil.Process(pid).net_connections("tcp")
    listening = [each.laddr for each in found if each.status == psutil.CONN_LISTEN]
    return {(address.ip.removeprefix("::ffff:"), address.port) for address in listening}


def test_split_serves_from_every_machine(cluster):
    overrides = ("model=tiny", "topology=split", *ONE_EACH)
    with serving(*overrides, runtime_directory=cluster.runtime) as (_, client):
        texts = set()
        for rank in range(3):
            with client_of(str(client.base_url), rank) as pinned:
                answer = complete(pinned, model="tiny", temperature=0).json()
                texts.add(answer["choices"][0]["text"])
        assert len(texts) == 1
        told = client.get("/plan").json()
        addresses = {node["id"]: node["address"] for node in told["plan"]["nodes"]}
        assert addresses == {
            name: machine.address
            for name, machine in zip(("head", "node-1", "node-2"), cluster.machines, strict=True)
        }
        actual = {process["name"]: process for process in told["actual"]}
        for rank, machine in enumerate(cluster.machines):
            process = actual[f"engine-{rank}"]
            assert addresses[process["node"]] == machine.address
            assert process["pid"] in machine.processes()
        for name in ("coordinator", "frontend-0"):
            for endpoint in actual[name]["endpoints"].values():
                assert endpoint.startswith(f"tcp://{cluster.machines[0].address}:")


def test_fixed_ports_are_all_that_it_listens_on_for_other_machines(cluster):
    head = cluster.machines[0].address
    overrides = ("topology=remote_only", "dp=2", "ports=40000-40007", "head.interface=eth0")
    with serving("model=dummy", *overrides, runtime_directory=cluster.runtime) as (_, client):
        url = client.base_url
        assert complete(client).json()["choices"][0]["text"] == "abcdefgh"
        there = pids(str(url))
        assert listens_on(there["coordinator"]) == {(head, 40000), (head, 40001)}
        others = {(head, 40002), (head, 40003)}
        assert listens_on(there["frontend-0"]) == {(url.host, url.port), *others}


def test_a_token_for_other_clusters_is_not_used(cluster, runtime, monkeypatch):
    (runtime / ".ray").mkdir()
    (runtime / ".ray" / "auth_token").write_text("a" * 64)
    monkeypatch.setenv("HOME", str(runtime))
    monkeypatch.delenv("RAY_AUTH_MODE")
    overrides = ("model=dummy", "topology=split", "dp=2")
    with serving(*overrides, runtime_directory=cluster.runtime) as (_, client):
        assert complete(client).json()["choices"][0]["text"] == "abcdefgh"


def test_the_log_of_a_rank_comes_from_another_machine(cluster):
    overrides = ("topology=remote_only", "topology.strategy=spread", "dp=2")
    with launched("model=dummy", *overrides, runtime_directory=cluster.runtime) as launcher:
        os.kill(pids(launcher.ready())["engine-1"], signal.SIGKILL)
        assert launcher.end() == 1
        assert "engine-1 ended: its process was killed or crashed (on node-2)" in launcher.output
        log = (launcher.directory / "logs" / "engine-1.log").read_text()
        assert "engine-1 engine.core.process: ready" in log
        assert ":actor_name:" not in log, "a mark of Ray's"


def test_a_model_that_another_machine_does_not_have_names_path_and_machine(cluster):
    model = cluster.runtime / "model"  # which the others do not see
    model.mkdir()
    overrides = ("topology=split", *ONE_EACH, *random_model(model))
    with launched(*overrides, runtime_directory=cluster.runtime) as launcher:
        assert launcher.end(within_s=60) == 1
        assert f"{model}" in launcher.output
        assert "(on node-" in launcher.output


def test_a_machine_that_is_cut_off_fails_its_ranks_and_ends_the_deployment(cluster):
    _, cut, other = cluster.machines
    before = of_ray(other)
    overrides = ("model=dummy", "model.step_s=0.05", "topology=remote_only", "dp=3")
    try:
        with (
            launched(*overrides, runtime_directory=cluster.runtime) as launcher,
            contextlib.ExitStack() as opened,
        ):
            url = launcher.ready()
            events = []
            for rank in range(3):
                client = opened.enter_context(client_of(url, rank))
                events.append(opened.enter_context(stream(client, 120)).iter_lines())
                next(events[-1])
            cut.set_link("down")
            lost = "node-1 is lost, with ranks 0, 1: no answer from "
            launcher.wait_for(f"{lost}{cut.address}", CUT_OFF_S)
            first, second, third = ([line for line in each if line] for each in events)
            for end in (first, second):
                assert '"rank_failed"' in end[-2]
                assert "node-1 is lost" in end[-2]
            assert '"finish_reason":"length"' in third[-2]
            assert launcher.end() == 1
            assert f"ended: {lost}" in launcher.output
            assert "(nothing of its log is here)" in launcher.output
        until(lambda: of_ray(other) == before)
    finally:
        cut.set_link("up")


def test_it_serves_between_addresses_of_version_6(monkeypatch):
    with ray_on(2, is_v6=True) as cluster, used(cluster, monkeypatch):
        overrides = ("model=dummy", "topology=split", "dp=2", "frontend.host=::1")
        with serving(*overrides, runtime_directory=cluster.runtime) as (_, client):
            for rank in range(2):
                with client_of(str(client.base_url), rank) as pinned:
                    assert complete(pinned).json()["choices"][0]["text"] == "abcdefgh"
            [head, other] = client.get("/plan").json()["plan"]["nodes"]
            assert [head["address"], other["address"]] == ["fd00:99::1", "fd00:99::2"]
            assert {
                address for address, _ in listens_on(pids(str(client.base_url))["coordinator"])
            } == {head["address"]}
