"""The launcher's side of the fork server (`engine/fork_server.py`) and of what it has forked."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from engine.fork_server import FROM_SERVER, MAX_MESSAGE_BYTES, Ended, Fork, Forked, NotForked

logger = logging.getLogger(__name__)

_START_S = 10.0
"""Seconds that the kernel gets to start the server; what it imports is not waited for."""
_END_S = 5.0
"""Seconds that the kernel gets to end the server when it is killed."""


class ForkedProcess:
    """A process that the server forks as soon as it can.

    Once there it hangs on its lifeline, not on the server.

    Attributes:
        pid: None: it has not been forked yet.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self._pidfd = -1
        self._is_unwanted = False
        self._ended: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int | str:
        """Until it has ended.

        Returns:
            Its exit code, negative: the signal that ended it; or why there is none.
        """
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Ends it, if need be as soon as it is there."""
        self._is_unwanted = True
        if self._pidfd >= 0 and not self._ended.done():
            with contextlib.suppress(ProcessLookupError):  # the server is about to tell
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def forked(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd
        if self._is_unwanted:
            self.kill()

    def ended(self, how: int | str) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._ended.set_result(how)

    def orphaned(self) -> None:
        """The server, which would have told when and how it ends, has ended."""
        if self._pidfd < 0:
            self.ended("the fork server ended before it was forked")
            return
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self._pidfd)
            self.ended("nobody knows how: its fork server had ended before")

        loop.add_reader(self._pidfd, gone)


class ForkServer:
    """Starts the server when something is to be forked, and again if it has ended since.

    Args:
        title: How it is called in a list of processes.
        modules: What it imports.
        num_threads: The most that a process will compute with.
        log_path: Where it writes what is wrong.
    """

    def __init__(self, title: str, modules: Sequence[str], num_threads: int, log_path: str) -> None:
        self._arguments = [title, *modules]
        self._num_threads, self._log_path = num_threads, log_path
        self._socket: socket.socket | None = None
        self._server: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._gone = asyncio.Event()
        self._last_number = 0
        self._processes: dict[int, ForkedProcess] = {}

    async def fork(self, lifeline: int, log: int) -> ForkedProcess:
        """A process that will hang on a lifeline. The server is not waited for.

        Raises:
            OSError: The server cannot be started, or takes no more.
        """
        try:
            async with asyncio.timeout(_START_S), self._starting:
                ours = self._socket or await self._start()
        except TimeoutError:
            raise OSError(f"the fork server has not started within {_START_S:g} s") from None
        self._last_number += 1
        process = self._processes[self._last_number] = ForkedProcess()
        message = msgspec.msgpack.encode(Fork(self._last_number))
        try:
            socket.send_fds(ours, [message], [lifeline, log])
        except ConnectionError:
            pass  # it has just ended, and what is received next says so
        except OSError:
            del self._processes[self._last_number]
            raise
        return process

    async def stop(self) -> None:
        """Ends the server, and what it has not forked yet never is."""
        if self._socket is None or self._server is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._server.kill()
        try:
            async with asyncio.timeout(_END_S):
                await self._gone.wait()
                await self._server.wait()
        except TimeoutError:
            logger.error("still there after SIGKILL: the fork server, process %d", self._server.pid)

    async def _start(self) -> socket.socket:
        """Starts it, and hears from then on what it says; what it imports is not waited for."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        command = (sys.executable, "-m", "engine.fork_server", str(theirs.fileno()))
        try:
            self._server = await asyncio.create_subprocess_exec(
                *(*command, *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment(),
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(log)
        self._gone.clear()
        self._socket = ours
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours, self._receive, ours)
        return ours

    def _environment(self) -> dict[str, str]:
        """OpenMP reads its number of threads when it is loaded; OpenBLAS, numpy's, starts them."""
        return {"OMP_NUM_THREADS": str(self._num_threads), "OPENBLAS_NUM_THREADS": "1"}

    def _receive(self, ours: socket.socket) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(ours, MAX_MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._lose(ours)
                return
            match FROM_SERVER.decode(data):
                case Forked(number, pid):
                    self._processes[number].forked(pid, fds[0])
                case NotForked(number, error):
                    self._processes.pop(number).ended(f"it could not be forked: {error}")
                case Ended(number, exit_code):
                    self._processes.pop(number).ended(exit_code)

    def _lose(self, ours: socket.socket) -> None:
        """The server has ended; what it forked has not."""
        asyncio.get_running_loop().remove_reader(ours)
        ours.close()
        self._socket = None
        for process in self._processes.values():
            process.orphaned()
        self._processes.clear()
        self._gone.set()
