"""A connection to a Ray cluster: which nodes it has, and what becomes of it.

Ray has one connection per process. Its calls block, so all of them are made in one thread, which
ends with the process whatever Ray does: every wait of ours has a deadline of its own.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import queue
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launcher.cluster import Cluster, ClusterKind, Node
from launcher.errors import Refused
from launcher.executors.ray import connection
from launcher.node_names import with_stable_names

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_S = 30.0
"""Deadline of a question to Ray that is answered at once unless its head is in trouble."""
CONNECT_S = 60.0
CLOSE_S = 10.0
_REACH_S = 5.0
_ASK_S = 20.0
"""Nodes that have not said by then how much memory their GPUs have are planned without."""
_ADDRESS_FILE = "ray_current_cluster"
"""Where `ray start` writes the address of the newest cluster of a machine, in Ray's temporary
directory. Source: the documentation of `ray.init`, address="auto"."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """What Ray calls a node; its ids and ports change at every start."""

    id: str
    address: str
    port: int
    """Of its raylet."""


class Session:
    """One connection. Methods that begin with `call` may be called from any thread.

    Attributes:
        address: Of the cluster.
        nodes: By the names that a plan calls them, since the last `discover`.
        is_connected: Calls can be made.
    """

    def __init__(self, address: str, environment: Mapping[str, str] | None = None) -> None:
        self.address = address
        self.nodes: dict[str, RayNode] = {}
        self._head_id = ""
        self._environment = environment or {}
        self._has_joined = False
        self.is_connected = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T], deadline_s: float = CALL_S) -> T:
        """Calls a function in Ray's thread.

        Raises:
            TimeoutError: It has not returned before the deadline.
        """
        return self._submit(function).result(deadline_s)

    async def call_async(self, function: Callable[[], T], deadline_s: float = CALL_S) -> T:
        """The same without blocking; when cancelled, what has begun goes on to its end."""
        async with asyncio.timeout(deadline_s):
            return await asyncio.wrap_future(self._submit(function))

    def connect(self) -> None:
        """Connects, unless whoever uses this process has done it.

        Raises:
            Refused: No cluster answers there, or this machine is no node of it.
        """
        _check_reach(self.address)
        try:
            self.call(self._connect, CONNECT_S)
        except TimeoutError:
            raise Refused(
                f"the Ray cluster at {self.address} does not answer within {CONNECT_S:g} s",
                "cluster=emulated, or see `ray status`",
            ) from None
        except Refused:
            raise
        except Exception as problem:  # Ray has no one class for what can be wrong
            raise _refused(self.address, problem) from problem

    def discover(self, machine: Cluster, grows: bool | None = None) -> Cluster:
        """The nodes as they are now; the head is the one that this process runs on.

        Args:
            machine: This machine, for the head's names and interfaces.
            grows: Whether the cluster adds nodes when asked; None: what its autoscaler says.
        """
        found = self.call(_look)
        named = with_stable_names(found.nodes)
        names = {ray_id: node.id for ray_id, node in named.items()}
        self.nodes = {name: found.ray_nodes[ray_id] for ray_id, name in names.items()}
        self._head_id = next((node.id for node in found.nodes if node.head), "")
        if not self._head_id:
            raise Refused(
                f"the Ray node of this machine has died: {self.address}",
                "ray start --address=... on this machine",
            )
        can_add = found.can_add if grows is None else ("CPU", "GPU") if grows else ()
        return Cluster(
            nodes=tuple(named.values()),
            kind=ClusterKind.existing,
            can_add=can_add,
            head_names=machine.head_names,
            head_interfaces=machine.head_interfaces,
            holders={names[id]: held for id, held in found.holders.items() if id in names},
        )

    @property
    def head_id(self) -> str:
        """Ray's id of the node that this process runs on."""
        return self._head_id

    def close(self) -> None:
        """Disconnects, which ends every actor and group that this process has made."""
        if self.is_connected:
            self.is_connected = False
            try:
                if self._has_joined:
                    self.call(connection.leave, CLOSE_S)
            except TimeoutError:
                logger.warning("Ray did not disconnect within %g s", CLOSE_S)
        self._calls.put(None)

    def _connect(self) -> None:
        self._has_joined = connection.join(self.address, self._environment)
        self.is_connected = True

    def _submit(self, function: Callable[[], T]) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as problem:
                future.set_exception(problem)

        self._calls.put(work)
        return future

    def _run(self) -> None:
        while (work := self._calls.get()) is not None:
            work()


def running_cluster(address: str | None, environment: Mapping[str, str]) -> str | None:
    """Address of the cluster that would be used: told, the one that this process is connected to,
    RAY_ADDRESS, or one of this user's on this machine.

    Raises:
        Refused: The address is of a kind that cannot be used.
    """
    own = connection.own_address()
    told = address or own or environment.get("RAY_ADDRESS") or "auto"
    if told not in ("auto", "local"):
        if "://" in told:
            raise Refused(
                f"backend.address must be host:port, the launcher is a node of the cluster: {told}",
                "ray start --address=HOST:PORT on this machine, and backend.address=HOST:PORT",
            )
        return told
    if told == "local":
        return None
    directory = Path(environment.get("RAY_TMPDIR") or "/tmp", "ray")
    with contextlib.suppress(OSError):
        file = directory / _ADDRESS_FILE
        if file.stat().st_uid != os.getuid():  # not to be trusted with keys, unless told
            return None
        found = file.read_text().strip()
        with contextlib.suppress(Refused):  # it has ended without removing the file
            _check_reach(found)
            return found
    return None


def _check_reach(address: str) -> None:
    """Whether somebody listens there: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    hint = "ray start --head, or cluster=emulated"
    if not host or not port.isdigit():
        raise Refused(f"backend.address must be host:port: {address}", "backend.address=HOST:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise Refused(f"no Ray cluster answers at {address}: {reason}", hint) from None


def _refused(address: str, problem: Exception) -> Refused:
    """What the user can do about a connection that has failed."""
    if "AuthenticationError" in f"{problem!r} {problem.__cause__}":
        return Refused(
            f"the Ray cluster at {address} wants its token, which is missing here or another one",
            "RAY_AUTH_MODE=token, and the token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
        )
    first = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
    return Refused(
        f"no connection to the Ray cluster at {address}: {first}",
        "run the launcher on a node of the cluster, or cluster=emulated",
    )


@dataclass(slots=True)
class _Found:
    nodes: list[Node]
    ray_nodes: dict[str, RayNode]
    holders: dict[str, tuple[str, ...]]
    can_add: tuple[str, ...]


def _look() -> _Found:
    import ray

    untyped: Any = ray
    seen_nodes = [seen for seen in untyped.nodes() if seen["Alive"]]
    gpu_memory = _gpu_memory(
        [seen["NodeID"] for seen in seen_nodes if seen["Resources"].get("GPU")]
    )
    own = ray.get_runtime_context().get_node_id()
    available = untyped._private.state.available_resources_per_node()
    nodes, ray_nodes, total = [], {}, defaultdict[str, float](float)
    for seen in seen_nodes:
        id, resources = seen["NodeID"], seen["Resources"]
        free = available.get(id, {})
        in_use = {
            name: held
            for name in ("CPU", "GPU")
            if (held := resources.get(name, 0.0) - free.get(name, 0.0)) > 0
        }
        for name, number in resources.items():
            total[name] += number
        nodes.append(
            Node(
                id=id,
                address=seen["NodeManagerAddress"],
                head=id == own,
                cpus=int(resources.get("CPU", 0)),
                memory_bytes=int(resources.get("memory", 0)),
                gpus=int(resources.get("GPU", 0)),
                gpu_memory_bytes=gpu_memory.get(id, 0),
                labels={k: v for k, v in seen["Labels"].items() if k != "ray.io/node-id"},
                in_use=in_use,
            )
        )
        ray_nodes[id] = RayNode(id, seen["NodeManagerAddress"], seen["NodeManagerPort"])
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    can_add = tuple(name for name in ("CPU", "GPU") if most.get(name, 0) > total[name])
    return _Found(nodes, ray_nodes, _holders(), can_add)


def _gpu_memory(node_ids: Sequence[str]) -> dict[str, int]:
    """Bytes of memory of each GPU of these nodes, by asking them; without those that do not say."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from launcher.executors.ray.actor import gpu_memory

    untyped: Any = ray
    task = untyped.remote(num_cpus=0, max_retries=0)(gpu_memory)
    asked = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)
        ).remote(): id
        for id in node_ids
    }
    if not asked:
        return {}
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_S)
    for reference in late:
        ray.cancel(reference, force=True)
    found = {}
    for reference in answered:
        try:
            found[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError as problem:
            logger.warning("a node does not say how much memory its GPUs have: %s", problem)
    return found


def _holders() -> dict[str, tuple[str, ...]]:
    """Names of the placement groups that hold something of each node."""
    from ray.util.placement_group import placement_group_table

    found: dict[str, dict[str, None]] = defaultdict(dict)
    for group in placement_group_table().values():
        if group["state"] == "CREATED":
            for node_id in group["bundles_to_node_id"].values():
                found[node_id][
                    group["name"] or f"placement group {group['placement_group_id']}"
                ] = None
    return {node_id: tuple(names) for node_id, names in found.items()}
