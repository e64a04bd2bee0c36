"""Ray clusters as somebody starts them by hand, and what other people run on them."""

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from launcher.executors.ray.session import Session
from launcher.node_names import NAME_LABEL
from launcher.this_machine import local_cluster
from tests.running import ROOT

TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""For all clusters of a test process: Ray reads it once, and its ports are open to the network."""
DEADLINE_S = 30.0
NEIGHBOUR = "neighbour"


class HandStarted:
    """A cluster on this machine that was started with `ray start`, node after node.

    Attributes:
        address: Of the cluster.
    """

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="ray-")
        self._nest = subprocess.Popen(
            [sys.executable, "-m", "tests.launcher.ray.nest"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = ""

    def start_head(self, num_cpus: int) -> None:
        self._start("head", num_cpus, "--head", "--port=0", f"--temp-dir={self._directory}")
        self.address = Path(self._directory, "ray_current_cluster").read_text().strip()

    def add_node(self, name: str, num_cpus: int, **environment: str) -> None:
        """Another node, whose processes have more in their environment."""
        self._start(name, num_cpus, f"--address={self.address}", **environment)

    def raylets(self, node: str) -> list[psutil.Process]:
        """What makes a process a node; none if there is no such node."""
        found = []
        for process in psutil.Process(self._nest.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = process.cmdline()
                is_raylet = bool(command) and command[0].endswith("/raylet")
                if is_raylet and any(node in argument for argument in command):
                    found.append(process)
        return found

    def end(self) -> None:
        self._nest.communicate(timeout=DEADLINE_S)
        shutil.rmtree(self._directory)

    def _start(self, name: str, num_cpus: int, *options: str, **environment: str) -> None:
        assert self._nest.stdin is not None
        assert self._nest.stdout is not None
        command = [
            *("env", *(f"{variable}={value}" for variable, value in environment.items())),
            *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--num-cpus={num_cpus}"),
            *("--num-gpus=0", f"--memory={4 << 30}", f"--object-store-memory={80 << 20}"),
            *("--disable-usage-stats", "--include-log-monitor=false"),
            *(f"--labels={NAME_LABEL}={name}", *options),
        ]
        if "--head" in options:
            command += ["--include-dashboard=false", "--no-monitor"]
        self._nest.stdin.write(json.dumps(command) + "\n")
        self._nest.stdin.flush()
        code, said = json.loads(self._nest.stdout.readline())
        assert code == 0, said


@contextlib.contextmanager
def hand_started(num_cpus_of_head: int) -> Iterator[HandStarted]:
    """A cluster of a head, which is gone afterwards."""
    cluster = HandStarted()
    try:
        cluster.start_head(num_cpus_of_head)
        yield cluster
    finally:
        cluster.end()


class Onlooker:
    """A connection of the tests' own: sees what the cluster runs, and has work of others there.

    Args:
        neighbour_on: Node on which others hold a CPU; None: nobody does.
    """

    def __init__(self, address: str, neighbour_on: str | None = None) -> None:
        self.session = Session(address, TOKEN)
        self.session.connect()
        self.session.discover(local_cluster())
        self._neighbour: Any = None
        if neighbour_on is not None:
            self._neighbour = self.session.call(lambda: self._settle(neighbour_on))
        self._before = self.session.call(_available)

    def close(self) -> None:
        self.session.close()

    def actors(self) -> dict[str, tuple[str, int]]:
        """Node and pid of every actor of a deployment that lives, by its process's name."""
        names = {node.id: name for name, node in self.session.nodes.items()}
        found = {}
        for actor in self.session.call(_actors):
            if actor["Name"] != NEIGHBOUR:
                process = actor["Name"].rpartition(".")[0].split("-", 3)[-1]
                found[process] = (names[actor["Address"]["NodeID"]], actor["Pid"])
        return found

    def assert_as_before(self) -> None:
        """Nothing is there but what others have, and all else is free."""
        own = {NEIGHBOUR} if self._neighbour is not None else set()
        deadline = time.monotonic() + DEADLINE_S
        while True:
            actors = {actor["Name"] for actor in self.session.call(_actors)}
            groups = set(self.session.call(groups_that_exist))
            available = self.session.call(_available)  # a dead node is told for a while
            available = {node: available.get(node, 0.0) for node in self._before}
            if actors == groups == own and available == self._before:
                break
            assert time.monotonic() < deadline, (actors, groups, available, self._before)
        if self._neighbour is not None:
            assert self.session.call(self._ask_neighbour) == self._neighbour_pid

    def _settle(self, node: str) -> Any:
        """In Ray's thread."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = placement_group(
            [{"CPU": 1}],
            name=NEIGHBOUR,
            bundle_label_selector=[{"ray.io/node-id": self.session.nodes[node].id}],
        )
        assert group.wait(DEADLINE_S)
        untyped: Any = ray
        actor = untyped.remote(_Neighbour)
        self._neighbour = actor.options(
            name=NEIGHBOUR,
            num_cpus=1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
        ).remote()
        self._neighbour_pid = self._ask_neighbour()
        return self._neighbour

    def _ask_neighbour(self) -> int:
        import ray

        pid: int = ray.get(self._neighbour.pid.remote(), timeout=DEADLINE_S)
        return pid


class _Neighbour:
    def pid(self) -> int:
        import os

        return os.getpid()


def groups_that_exist() -> list[str]:
    """Names of all placement groups but those removed; in Ray's thread."""
    from ray.util.placement_group import placement_group_table

    groups = placement_group_table().values()
    return [group["name"] for group in groups if group["state"] != "REMOVED"]


def _actors() -> list[dict[str, Any]]:
    import ray

    untyped: Any = ray
    actors = untyped._private.state.actors().values()
    return [actor for actor in actors if actor["State"] != "DEAD"]


def _available() -> dict[str, float]:
    """CPUs that are free, by Ray's ids of the nodes."""
    import ray

    untyped: Any = ray
    found = untyped._private.state.available_resources_per_node()
    return {node: free.get("CPU", 0.0) for node, free in found.items()}


def members_of(client: httpx.Client, role: str) -> dict[str, dict[str, Any]]:
    """What is told of the processes of a role, by name."""
    members = client.get("/plan").json()["actual"]
    return {member["name"]: member for member in members if member["role"] == role}


def until(holds: Callable[[], object]) -> None:
    """Asks until it holds; each time something that takes a moment, such as an HTTP request."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it never held"
