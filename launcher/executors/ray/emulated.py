"""Ray nodes that all are this machine, and the process that leaves nothing of them behind.

`python -m launcher.executors.ray.emulated FD` starts the nodes and hangs on a pipe, FD, from the
launcher. Ray's processes leave their parents and their process groups, and some outlive their
cluster by a minute; but every orphan becomes a child of this process (PR_SET_CHILD_SUBREAPER,
prctl(2)), which ends them all as soon as the pipe closes, however the launcher has ended.
"""

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from engine.lifeline import FAREWELL, Lifeline, frame
from launcher.errors import StartFailed
from launcher.node_names import NAME_LABEL

if TYPE_CHECKING:
    from launcher.plan import DeploymentPlan

_PR_SET_CHILD_SUBREAPER = 36
"""Source: linux/prctl.h."""
_OBJECT_STORE_BYTES = 80 << 20
"""About the least that Ray takes; nothing of ours goes through it."""
_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A dead node is known after about 1.5 s; with Ray's defaults it can take a minute."""
_TRIES = 2
"""A node whose ports another process has just taken does not come up."""
_NODE_DEADLINE_S = 45.0
"""Ray itself gives a node 30 s to come up."""
_STOP_S = 10.0
_TAIL_LINES = 12
_MAX_PATH = 24
"""Of the temporary directory. Source: unix(7), 107 bytes; Ray's own names take up to 75."""


class NodeSize(msgspec.Struct, frozen=True):
    """What one emulated node is said to have."""

    name: str
    num_cpus: int
    num_gpus: int
    gpu_ids: str | None = None
    """Of the machine's GPUs those that are this node's, as in CUDA_VISIBLE_DEVICES; None: all."""


def sizes_for(plan: "DeploymentPlan", visible_gpu_ids: Sequence[str]) -> tuple[NodeSize, ...]:
    """The nodes that a plan counts on, with at least the CPUs and GPUs planned."""
    planned: Counter[tuple[str, str]] = Counter()
    for group in plan.groups:
        for bundle in group.bundles:
            for resource, number in bundle.resources.items():
                planned[bundle.node, resource] += number
    sizes = [
        NodeSize(
            node.id,
            max(node.cpus, planned[node.id, "CPU"]),
            max(node.gpus, planned[node.id, "GPU"]),
        )
        for node in plan.nodes
    ]
    return _with_gpu_ids(sizes, visible_gpu_ids)


def _with_gpu_ids(sizes: Sequence[NodeSize], visible: Sequence[str]) -> tuple[NodeSize, ...]:
    """The nodes with GPUs of their own, where the machine has as many as they are said to have."""
    if sum(size.num_gpus for size in sizes) > len(visible) or not visible:
        return tuple(sizes)
    left, dealt = list(visible), []
    for size in sizes:
        own, left = left[: size.num_gpus], left[size.num_gpus :]
        dealt.append(msgspec.structs.replace(size, gpu_ids=",".join(own)))
    return tuple(dealt)


class _Order(msgspec.Struct, frozen=True):
    """What the process is told. The first node is the cluster's head."""

    nodes: tuple[NodeSize, ...]


class EmulatedNodes:
    """A Ray cluster on this machine, which ends with this process at the latest.

    Attributes:
        address: Of the cluster, host:port, once it stands.
        token: Ray's token for this cluster: its ports are open on every interface, and without the
            token they answer nobody.
    """

    def __init__(self, nodes: tuple[NodeSize, ...]) -> None:
        self._nodes = nodes
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline = -1
        self._directory = ""
        self.address = ""
        self.token = _token()

    @property
    def environment(self) -> dict[str, str]:
        """What whoever connects to the cluster needs in its environment."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    async def start(self, on_node: Callable[[str], None] = lambda name: None) -> None:
        """Starts every node, one after the other.

        Args:
            on_node: Called with the name of each that has started.

        Raises:
            StartFailed: A node did not come up; with Ray's last words.
        """
        theirs, self._lifeline = os.pipe()
        others = {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"}  # of a cluster of the user's
        environment = {name: value for name, value in os.environ.items() if name not in others}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "launcher.executors.ray.emulated", str(theirs)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=environment | self.environment,
                pass_fds=(theirs,),
                start_new_session=True,  # Ctrl-C in the terminal is the launcher's
            )
        finally:
            os.close(theirs)
        order = msgspec.msgpack.encode(_Order(self._nodes))
        with contextlib.suppress(BrokenPipeError):  # it has died: the answer says so
            os.write(self._lifeline, frame(order))
        assert self._process.stdout is not None
        while not self.address:
            line = await self._process.stdout.readline()
            match json.loads(line or b"{}"):
                case {"directory": str(directory)}:
                    self._directory = directory
                case {"node": str(name)}:
                    on_node(name)
                case {"address": str(address)}:
                    self.address = address
                case answer:
                    said = answer.get("error", "its supervisor died")
                    raise StartFailed(f"the emulated Ray cluster did not come up: {said}")

    async def wait(self) -> None:
        """Until the cluster's supervisor ends, which it does only when told to, or killed."""
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> None:
        """Ends every process of the cluster."""
        if self._lifeline < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._lifeline, FAREWELL)
        os.close(self._lifeline)
        self._lifeline = -1
        if self._process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        if (
            self._process.returncode != 0 and self._directory
        ):  # it was killed, and has left all of them behind
            await asyncio.to_thread(_kill_orphans, self._directory)


def _kill_orphans(directory: str) -> None:
    """Kills what was started with a path below the directory, its children, and the directory."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(directory in argument for argument in process.cmdline()):
                for each in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
    shutil.rmtree(directory, ignore_errors=True)


class _Supervisor:
    """Parent, by birth or by adoption, of every process of the cluster."""

    def __init__(self, order: _Order) -> None:
        self._order = order
        self._starting = threading.Lock()
        self._directory = _make_directory()
        _answer(directory=self._directory)

    def start(self) -> str:
        """Starts the nodes; returns the cluster's address."""
        head, *others = self._order.nodes
        directory = f"{self._directory}/r"  # Ray opens its own to everybody
        self._start_node(
            head,
            *("--head", "--port=0", f"--temp-dir={directory}", "--include-dashboard=false"),
            "--no-monitor",
            f"--system-config={json.dumps(_HEALTH)}",
        )
        address = Path(directory, "ray_current_cluster").read_text().strip()
        for node in others:
            self._start_node(node, f"--address={address}")
        return address

    def end(self) -> None:
        """Ends everything, and this process."""
        self._starting.acquire()
        while children := psutil.Process().children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=1)
        shutil.rmtree(self._directory, ignore_errors=True)
        os._exit(0)

    def _start_node(self, node: NodeSize, *options: str) -> None:
        """One after the other: nodes that start together take each other's ports."""
        for last in range(_TRIES):
            said = self._try_node(node, options)
            if not said:
                _answer(node=node.name)
                return
            if last == _TRIES - 1:
                raise RuntimeError(f"{node.name}: {said}")

    def _try_node(self, node: NodeSize, options: tuple[str, ...]) -> str:
        """What went wrong, or nothing."""
        own_gpus = {} if node.gpu_ids is None else {"CUDA_VISIBLE_DEVICES": node.gpu_ids}
        with self._starting:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start"),
                    *(f"--num-cpus={node.num_cpus}", f"--num-gpus={node.num_gpus}"),
                    f"--labels={NAME_LABEL}={node.name}",
                    f"--object-store-memory={_OBJECT_STORE_BYTES}",
                    *("--disable-usage-stats", "--include-log-monitor=false"),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | own_gpus,
            )
        try:
            said, _ = process.communicate(timeout=_NODE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"not there after {_NODE_DEADLINE_S:g} s"
        if process.returncode == 0:
            return ""
        lines = [line for line in said.splitlines() if line.strip()]
        return "\n    ".join(lines[-_TAIL_LINES:]) or f"exit code {process.returncode}"


@functools.cache
def _token() -> str:
    """One for all clusters of this process: Ray reads it once."""
    return secrets.token_hex(32)


def _make_directory() -> str:
    """Of the cluster's own, and short: Ray makes socket files some 70 characters below."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="fl-", dir=usual if len(usual) <= _MAX_PATH else "/tmp")


def _answer(**what: str) -> None:
    """Tells the launcher, if that still lives."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


def _reap() -> None:
    """Waits for adopted children for ever: a raylet that is a zombie keeps its workers alive."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            threading.Event().wait(1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lifeline = Lifeline(int(sys.argv[1]))
    supervisor = _Supervisor(msgspec.msgpack.decode(lifeline.payload(), type=_Order))
    lifeline.watch(supervisor.end, grace_s=_STOP_S)
    try:
        _answer(address=supervisor.start())
    except (OSError, RuntimeError) as problem:
        _answer(error=str(problem))
    _reap()


if __name__ == "__main__":
    main()
