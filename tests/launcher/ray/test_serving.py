"""Deployments on a cluster that was there before, and stays as it was."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2 as httpx
import psutil
import pytest
import zmq

from tests.launcher.ray.clusters import members_of, until
from tests.running import assert_ended, complete, launched, serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
PROMPTS = ([1, 2, 3], [7], list(range(40)))


@pytest.fixture(autouse=True)
def _is_left_as_found(onlooker) -> Iterator[None]:
    yield
    onlooker.assert_as_before()


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        ("topology=head_only backend=ray dp=2", (2, 0, 0)),
        ("topology=split dp=4", (2, 2, 0)),
        ("topology=split dp=6 topology.dp_local=2 topology.strategy=strict", (2, 2, 2)),
        ("topology=split dp=3 topology.dp_local=1 topology.strategy=spread", (1, 1, 1)),
        ("topology=remote_only dp=5", (0, 4, 1)),
        ("topology=remote_only dp=2 topology.strategy=spread", (0, 1, 1)),
        ("topology=auto dp=5", (4, 0, 1)),
        ("topology=auto dp=3 topology.strategy=spread", (1, 1, 1)),
        ("topology=auto dp=2 topology.strategy=span", (2, 0, 0)),
    ],
)
def test_every_rank_runs_where_it_was_planned(shared, onlooker, runtime, overrides, numbers):
    expected = {node: n for node, n in zip(("head", "left", "right"), numbers, strict=True) if n}
    where = (f"backend.address={shared.address}", "model=dummy")
    with serving(*overrides.split(), *where, runtime_directory=runtime) as (_, client):
        told = client.get("/plan").json()
        engines = {name: (m["node"], m["pid"]) for name, m in members_of(client, "engine").items()}
        actors = onlooker.actors()
        processes = [psutil.Process(pid) for _, pid in engines.values()]
        assert complete(client).status_code == 200
    planned = {process["name"]: process["node"] for process in told["plan"]["processes"]}
    assert told["drift"] == []
    assert Counter(node for node, _ in engines.values()) == expected
    assert {name: planned[name] for name in engines} == {
        n: node for n, (node, _) in engines.items()
    }
    assert actors == engines
    assert_ended(processes)


def test_ranks_on_any_node_give_the_greedy_tokens_of_processes_on_this_machine(shared, runtime):
    def texts(client: httpx.Client, rank: int) -> list[str]:
        question = {"model": "tiny", "temperature": 0, "max_tokens": 24, "ignore_eos": True}
        pinned = {"X-Data-Parallel-Rank": str(rank)}
        answers = [
            client.post("/v1/completions", json=question | {"prompt": prompt}, headers=pinned)
            for prompt in PROMPTS
        ]
        return [answer.json()["choices"][0]["text"] for answer in answers]

    with serving("model=tiny", "engine.dtype=float32", runtime_directory=runtime) as (_, client):
        expected = texts(client, 0)
    assert len(set(expected)) == len(PROMPTS)
    where = ("topology=split", "dp=2", f"backend.address={shared.address}")
    model = ("model=tiny", "engine.dtype=float32")
    with serving(*where, *model, runtime_directory=runtime) as (_, client):
        assert [texts(client, rank) for rank in range(2)] == [expected, expected]


def test_between_machines_it_listens_on_the_ports_it_was_given_and_hears_nobody_without_keys(
    shared, runtime
):
    first = free_range(8)
    ports = f"ports={first}-{first + 7}"
    where = ("topology=split", "dp=2", "model=dummy", ports, f"backend.address={shared.address}")
    with ExitStack() as taken:
        address = shared.address.rpartition(":")[0]
        taken.enter_context(socket.create_server((address, first + 1)))
        with serving(*where, runtime_directory=runtime) as (launcher, client):
            heard = {
                name: sorted(
                    each.laddr.port
                    for each in process.net_connections("tcp")
                    if each.status == psutil.CONN_LISTEN and each.laddr.ip.endswith(address)
                )
                for name, process in launcher.children().items()
            }
            assert heard == {
                "coordinator": [first, first + 2],
                "frontend-0": [first + 3, first + 4],
            }
            assert not list(launcher.directory.glob("coordinator*"))
            for port in (*heard["coordinator"], *heard["frontend-0"]):
                assert not lets_in_strangers(f"tcp://{address}:{port}")
            for name in heard:  # each is started again, on the same ports
                launcher.children()[name].kill()
                launcher.wait_for(rf"{name} +ready \(start 2\)")
                until(lambda: client.get("/ready").json().get("ready_ranks") == [0, 1])
            for _ in range(4):
                assert complete(client).status_code == 200
            assert client.get("/plan").json()["drift"] == []


def test_too_few_free_ports_are_refused(shared, runtime):
    first = free_range(4)
    ports = f"ports={first}-{first + 3}"
    where = ("topology=split", "dp=2", "model=dummy", ports, f"backend.address={shared.address}")
    address = shared.address.rpartition(":")[0]
    with (
        socket.create_server((address, first + 2)),
        launched(*where, runtime_directory=runtime) as launcher,
    ):
        assert launcher.end() == 2
    assert f"ports must have 4 free ports on {address}: {first}-{first + 3}" in launcher.output
    assert "hint: ports=ephemeral" in launcher.output
    assert not launcher.directory.exists()


def test_ray_address_and_interfaces_of_the_head_are_as_good_as_its_address(
    shared, runtime, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", shared.address)
    where = ("topology=remote_only", "model=dummy", "head.address=localhost", "cluster=existing")
    with serving(*where, runtime_directory=runtime) as (launcher, client):
        told = client.get("/plan").json()
        assert members_of(client, "engine")["engine-0"]["node"] == "left"
    nodes = {node["id"]: node["address"] for node in told["plan"]["nodes"]}
    assert nodes["head"] == shared.address.rpartition(":")[0]
    assert "emulated" not in launcher.output


def free_range(length: int) -> int:
    """The first of so many ports that nobody has now, below those that the kernel gives away."""
    for first in range(20000, 32000 - length, length):
        with ExitStack() as held:
            try:
                for port in range(first, first + length):
                    held.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def lets_in_strangers(endpoint: str) -> bool:
    """Whether somebody without keys gets through the handshake."""
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as stranger,
        stranger.get_monitor_socket() as news,
    ):
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(endpoint)
        stranger.send(b"\x00hello")
        seen, ends = 0, zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        while not seen & ends:
            assert news.poll(10_000), "nothing has become of the handshake"
            seen |= int.from_bytes(news.recv_multipart()[0][:2], "little")
        stranger.disable_monitor()
        return bool(seen & zmq.EVENT_HANDSHAKE_SUCCEEDED)
