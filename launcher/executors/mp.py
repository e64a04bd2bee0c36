"""Carries a plan out on this machine: one child process per planned process."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
from dataclasses import dataclass

import msgspec

from engine.access import Access
from engine.config import ModelKind, ProcessSpec, Role
from engine.entrypoint import Launch, command
from engine.lifeline import FAREWELL, frame
from engine.transport import Keys
from launcher.errors import StartFailed
from launcher.executors.base import Exit
from launcher.executors.fork_server import ForkedProcess, ForkServer
from launcher.executors.held_ports import HeldPorts
from launcher.executors.listening import listen, url
from launcher.executors.out_of_memory import num_oom_kills
from launcher.exit_codes import how_it_ended
from launcher.plan import DeploymentPlan
from launcher.ports import OF_COORDINATOR, OF_FRONTEND, num_ports_needed
from launcher.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_OPEN = Access()
_KILL_S = 5.0
"""Seconds that the kernel gets to end a process that was killed."""
_TAIL_BYTES = 64 << 10
_MAX_LOG_BYTES = 32 << 20
_TRIM_INTERVAL_S = 10.0

_Process = asyncio.subprocess.Process | ForkedProcess


@dataclass(slots=True)
class _Child:
    incarnation: int
    process: _Process
    lifeline: int
    """The launcher's end: closing it tells the child to end."""
    has_ended: bool = False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def close_lifeline(self) -> None:
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


class MpExecutor:
    """Children hang on a pipe each, and end when it closes: by `stop`, or with the launcher.

    Args:
        access: Who may use the front ends: told to those alone.
        host: Address on which they listen for processes of other machines; None: there are none.

    Attributes:
        keys: With which they speak to those.
    """

    def __init__(
        self, plan: DeploymentPlan, access: Access = _OPEN, host: str | None = None
    ) -> None:
        self._plan, self._access = plan, access
        self._ports = HeldPorts(host) if host is not None else None
        self.keys = Keys.make() if host is not None else None
        self._directory = RunDirectory(plan.name)
        self._sockets: list[socket.socket] = []
        self._private_sockets: dict[str, socket.socket] = {}
        self._children: dict[str, _Child] = {}
        self._exits: asyncio.Queue[Exit] = asyncio.Queue()
        self._watchers: list[asyncio.Task[None]] = []
        self._num_oom_kills = num_oom_kills()
        self._trimmer: asyncio.Task[None] | None = None
        self._fork_server = self._make_fork_server()
        self.coordinator_endpoint = f"ipc://{self._directory.path}/coordinator"
        self.addresses: list[str] = []
        self.private_addresses: list[str] = []
        self.left_behind: list[str] = []

    def reserve(self) -> None:
        self._directory.acquire()
        self._sockets = listen(self._plan.settings.frontend)
        self.addresses = [url(self._sockets[0])]
        if self._ports is not None:
            self._ports.hold(num_ports_needed(self._plan.settings.frontend.count), self._plan.ports)
            self.coordinator_endpoint = self._ports.endpoint(0)

    async def start(self) -> None:
        self._trimmer = asyncio.create_task(self._keep_logs_short())
        processes = self._plan.processes  # engine cores first: they take longest
        for process in sorted(processes, key=lambda process: process.role is not Role.engine):
            await self._spawn(process, incarnation=1)

    async def next_exit(self) -> Exit:
        return await self._exits.get()

    async def kill(self, name: str) -> None:
        if name in self._children:
            self._children[name].kill()

    def alive(self) -> list[str]:
        return [name for name, child in self._children.items() if not child.has_ended]

    async def restart(self, name: str) -> int:
        ended = self._children[name]
        ended.close_lifeline()
        spec = next(process for process in self._plan.processes if process.name == name)
        await self._spawn(spec, ended.incarnation + 1)
        return ended.incarnation + 1

    async def collect_log(self, name: str) -> None:
        """They are here."""

    def log_tail(self, name: str, num_lines: int) -> list[str]:
        with contextlib.suppress(OSError), open(self.log_path(name), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-num_lines:]
        return []

    def log_path(self, name: str) -> str:
        return str(self._directory.logs / f"{name}.log")

    async def stop(self, grace_s: float) -> None:
        for child in self._children.values():
            if child.lifeline >= 0:
                os.set_blocking(child.lifeline, False)
                with contextlib.suppress(OSError):  # it is gone, or has not read what it is to be
                    os.write(child.lifeline, FAREWELL)
                child.close_lifeline()
        if self._trimmer is not None:
            self._trimmer.cancel()
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=grace_s)
            for child in self._children.values():
                child.kill()
            await self._fork_server.stop()
            _, late = await asyncio.wait(self._watchers, timeout=_KILL_S)
            if late:  # stuck in the kernel: nothing more can be done from here
                self.left_behind = [f"{len(late)} processes that SIGKILL does not end"]
                logger.error("still there after SIGKILL: %d of our processes", len(late))
        await self._fork_server.stop()  # no process may have come of it
        self._children.clear()
        self._watchers.clear()

    def release(self, keep_logs: bool) -> None:
        for bound in (*self._sockets, *self._private_sockets.values()):
            bound.close()
        self._sockets.clear()
        self._private_sockets.clear()
        if self._ports is not None:
            self._ports.release()
        self._directory.remove(keep_logs)

    async def _spawn(self, spec: ProcessSpec, incarnation: int) -> None:
        listening = self._listening(spec)
        launch = Launch(
            process=spec,
            settings=self._plan.settings,
            coordinator_endpoint=self.coordinator_endpoint,
            incarnation=incarnation,
            listen_fds=tuple(bound.fileno() for bound in listening),
            keys=self.keys,
            access=self._access if spec.role is Role.frontend else _OPEN,
            ports=self._ports_of(spec),
            asked_s=time.monotonic(),
            run_directory=str(self._directory.path),
        )
        try:
            process, ours = await self._begin(spec, launch.listen_fds)
        except OSError as problem:
            raise StartFailed(f"{spec.name} could not be started: {problem}") from problem
        child = self._children[spec.name] = _Child(incarnation, process, ours)
        self._watchers.append(asyncio.create_task(self._watch(spec.name, child)))
        await asyncio.to_thread(_write_all, os.dup(ours), frame(msgspec.msgpack.encode(launch)))

    async def _begin(self, spec: ProcessSpec, listen_fds: tuple[int, ...]) -> tuple[_Process, int]:
        """A new process, and the launcher's end of its lifeline."""
        log = os.open(self.log_path(spec.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            theirs, ours = os.pipe()
            try:
                return await self._process(spec.role, theirs, log, listen_fds), ours
            except BaseException:
                os.close(ours)
                raise
            finally:
                os.close(theirs)
        finally:
            os.close(log)

    async def _process(
        self, role: Role, lifeline: int, log: int, listen_fds: tuple[int, ...]
    ) -> _Process:
        """Engine cores are forked, from what has imported torch; the others do not need it."""
        if role is Role.engine:
            return await self._fork_server.fork(lifeline, log)
        return await asyncio.create_subprocess_exec(
            *command(lifeline),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            pass_fds=(lifeline, *listen_fds),
        )

    def _make_fork_server(self) -> ForkServer:
        plan = self._plan
        modules = ["engine.core.process"]
        if plan.settings.model.kind is not ModelKind.dummy:
            modules.append("engine.model.torch_runner")
        num_threads = (worker.num_threads for spec in plan.processes for worker in spec.workers)
        return ForkServer(
            title=f"flotilla {plan.name} fork-server",
            modules=modules,
            num_threads=max(num_threads, default=1),
            log_path=self.log_path("fork-server"),
        )

    def _ports_of(self, spec: ProcessSpec) -> tuple[int, ...]:
        """Where a process listens for other machines, but for the coordinator's own endpoint."""
        if self._ports is None:
            return ()
        numbers = self._ports.numbers
        if spec.role is Role.coordinator:
            return tuple(numbers[1:OF_COORDINATOR])
        first = OF_COORDINATOR + OF_FRONTEND * spec.index
        return tuple(numbers[first : first + OF_FRONTEND])

    def _listening(self, spec: ProcessSpec) -> list[socket.socket]:
        """What a front end listens on: its TCP socket, and a private unix socket.

        Both stay open here, so that connections wait for a front end that is started again.
        """
        if spec.role is not Role.frontend:
            return []
        if spec.name not in self._private_sockets:
            private = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._private_sockets[spec.name] = private
            path = self._directory.path / f"{spec.name}.http"
            private.bind(str(path))
            path.chmod(0o600)
            private.listen()
            self.private_addresses.append(str(path))
        return [self._sockets[spec.index], self._private_sockets[spec.name]]

    async def _keep_logs_short(self) -> None:
        """Keeps logs from filling the run directory, which may be memory."""
        while True:
            await asyncio.sleep(_TRIM_INTERVAL_S)
            await self._trim_logs()

    async def _trim_logs(self) -> None:
        """A long log becomes `NAME.log.1`, in place of the one before, and starts anew."""
        for log in self._directory.logs.glob("*.log"):
            with contextlib.suppress(OSError):  # a full disk, say: tried again the next time
                if log.stat().st_size > _MAX_LOG_BYTES:
                    await asyncio.to_thread(shutil.copyfile, log, log.with_suffix(".log.1"))
                    os.truncate(log, 0)  # the process appends to it

    async def _watch(self, name: str, child: _Child) -> None:
        code = await child.process.wait()
        child.has_ended = True
        self._exits.put_nowait(Exit(name, child.incarnation, self._reason(code)))

    def _reason(self, code: int | str) -> str:
        if isinstance(code, str):
            return code
        reason = how_it_ended(code)
        if code >= 0:
            return reason
        num_before, self._num_oom_kills = self._num_oom_kills, num_oom_kills()
        is_out_of_memory = code == -signal.SIGKILL and self._num_oom_kills > num_before
        return f"{reason}, by the kernel: out of memory" if is_out_of_memory else reason


def _write_all(fd: int, data: bytes) -> None:
    """Writes to a descriptor of its own, since the executor may close the pipe's meanwhile."""
    try:
        with open(fd, "wb", buffering=0) as pipe:
            view = memoryview(data)
            while view:
                view = view[pipe.write(view) :]
    except BrokenPipeError:
        pass  # the process died already: its watcher tells
