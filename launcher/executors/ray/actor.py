"""An engine core as a Ray actor."""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import ray

from engine import __version__, logs
from engine.config import Found
from engine.entrypoint import allow_many_connections, failures_logged, run_engine
from launcher.executors.ray.launch import EngineLaunch, boot_id

_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Begin lines that Ray writes for its own reader of logs.
Source: ray/_private/ray_constants.py, `LOG_PREFIX_...`."""


class EngineActor:
    """Runs one engine core until it is told to stop, or it fails.

    Its constructor only reads: what can fail fails in `run`, with the engine core's own words.

    Args:
        version: Of the launcher's Flotilla, which has to be the same here.
        launch: An encoded `EngineLaunch`.
    """

    def __init__(self, version: str, launch: bytes) -> None:
        if version != __version__:
            raise RuntimeError(
                f"flotilla {__version__} is installed there, the launcher is {version}"
            )
        self._launch = msgspec.msgpack.decode(launch, type=EngineLaunch)
        self._told = _Told()
        os.environ.update(self._launch.environment)
        # Read when torch is loaded.
        num_threads = max(worker.num_threads for worker in self._launch.launch.process.workers)
        os.environ["OMP_NUM_THREADS"] = str(num_threads)

    def run(self) -> None:
        """Is the engine core.

        Raises:
            EngineError: It cannot go on; the message says why.
        """
        told, launch = self._told, self._launch.launch
        if boot_id() == self._launch.boot_id:
            _log_into(self._launch.log_file)
        logs.configure(launch.process.name, launch.settings.log.level)
        os.umask(0o077)
        allow_many_connections()
        node_id = ray.get_runtime_context().get_node_id()
        node = self._launch.node_names.get(node_id, node_id)
        with failures_logged(launch.process.name):
            run_engine(launch, told, Found(node, _device_ids()))

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Ends `run` after the step under way."""
        self._told.end()

    @ray.method(concurrency_group="control")
    def log_path(self) -> str:
        """Where Ray keeps what this process writes."""
        return os.readlink("/proc/self/fd/2")


class _Told:
    """In the place of a lifeline: Ray ends an actor whose launcher has died."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._on_end: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def watch(self, on_end: Callable[[], None], grace_s: float) -> None:
        """Calls `on_end` once told to end; after the grace the launcher kills the actor."""
        with self._lock:
            self._on_end = on_end
            if self._ended.is_set():
                on_end()

    def end(self) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._ended.set()
                if self._on_end is not None:
                    self._on_end()


def log_tail(path: str, num_bytes: int) -> str:
    """The end of a log that Ray keeps on the node that this runs on, without Ray's own marks."""
    with open(path, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - num_bytes))
        lines = log.read().decode(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_MARKS))


def gpu_memory() -> int:
    """Bytes of memory that the smallest GPU of the node that this runs on has; 0: none is seen."""
    from launcher.this_machine import visible_gpus

    return min(visible_gpus({}), default=0)


def _device_ids() -> list[int]:
    """GPUs that Ray has given, by index on the node; UUIDs count from 0."""
    ids: list[Any] = ray.get_gpu_ids()
    return [int(id) if str(id).isdigit() else index for index, id in enumerate(ids)]


def _log_into(path: str) -> None:
    """Sends all that this process writes into a file, which must be in a directory that exists."""
    with contextlib.suppress(OSError):
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(log)
