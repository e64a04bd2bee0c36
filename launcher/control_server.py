"""The launcher's side of the control socket."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

import msgspec

from engine import __version__
from launcher.control import (
    HEADER,
    MAX_QUESTION_BYTES,
    PROGRESS_S,
    QUESTION,
    Answer,
    Ended,
    GetState,
    Progress,
    Question,
    Rejected,
    Stage,
    State,
    Stop,
    Stopping,
    framed,
)
from launcher.deployment import Deployment
from launcher.errors import LauncherError, Refused
from launcher.executors.base import Executor
from launcher.plan import DeploymentPlan

MAX_CONNECTIONS = 32
"""More are turned away: a person and some scripts ask, not a crowd."""
QUESTION_S = 5.0
"""Deadline of a question, from the connection on, and of each answer to be taken."""
_LOOK_S = 0.1
"""Time between two looks for progress to tell."""
_FAREWELL_S = 1.0
"""Seconds in which clients must take the last answer."""


class Control:
    """The launcher's side: listens from `async with` on, and says at its end how all ended.

    Nobody can hold up the launcher: what is asked is small, and whoever is slow is dropped.

    Args:
        path: Of the socket.
        stop: Does what a Ctrl-C does; with True what the second one does.

    Attributes:
        stage: Kept up to date by whoever runs the deployment.
        num_cut_off: The same.
    """

    def __init__(
        self,
        path: Path,
        plan: DeploymentPlan,
        deployment: Deployment,
        executor: Executor,
        stop: Callable[[bool], None],
    ) -> None:
        self._path, self._plan, self._stop = path, plan, stop
        self._deployment, self._executor = deployment, executor
        self._began = time.monotonic()
        self._connections: set[asyncio.Task[None]] = set()
        self.stage = Stage.starting
        self.num_cut_off = 0

    async def __aenter__(self) -> Self:
        """Listens.

        Raises:
            Refused: The socket cannot be made.
        """
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(self._path))
            self._path.chmod(0o600)
            self._server = await asyncio.start_unix_server(
                self._accept, sock=listening, limit=MAX_QUESTION_BYTES
            )
        except OSError as problem:
            listening.close()
            raise Refused(f"control socket cannot be made: {self._path} ({problem})") from problem
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        problem: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self._ended.set_result(self._outcome(problem))
        if self._connections:
            await asyncio.wait(self._connections, timeout=_FAREWELL_S)
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _outcome(self, problem: BaseException | None) -> Ended:
        match problem:
            case None:
                return Ended(0, "", self.num_cut_off)
            case LauncherError():
                return Ended(problem.exit_code, str(problem), self.num_cut_off)
        return Ended(1, f"a defect: {problem!r}", self.num_cut_off)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._converse(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # sent: the kernel has it
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                await _send(writer, Rejected("too many ask at the same time"))
                return
            async with asyncio.timeout(QUESTION_S):
                question = await _receive(reader)
            await self._answer(question, reader, writer)
        except (ValueError, msgspec.MsgspecError) as problem:
            with contextlib.suppress(OSError):
                await _send(writer, Rejected(f"no question: {problem}"))
        except (OSError, asyncio.IncompleteReadError):  # gone, or slower than the deadline
            pass
        finally:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()

    async def _answer(
        self, question: Question, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        match question:
            case GetState():
                await _send(writer, self._state())
            case Stop(force):
                health = self._plan.settings.health
                drain_s = max(self._plan.settings.drain_s, 2 * health.heartbeat_s)
                await _send(writer, Stopping(os.getpid(), self.stage, drain_s, health.stop_s))
                self._stop(force)
                await self._follow(reader, writer)
            case _ as never:
                assert_never(never)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tells what goes on until all has ended, or nobody listens any more."""
        gone = asyncio.ensure_future(reader.read(1))
        told: Progress | None = None
        told_s = time.monotonic()
        try:
            while not gone.done() and not self._ended.done():
                progress = Progress(self.stage, self._deployment.num_requests)
                now = time.monotonic()
                if progress != told or now - told_s >= PROGRESS_S:
                    await _send(writer, progress)
                    told, told_s = progress, now
                waiting = (gone, self._ended)
                await asyncio.wait(waiting, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                await _send(writer, self._ended.result())
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    def _state(self) -> State:
        now = time.monotonic()
        membership, heard_s = self._deployment.heard
        return State(
            version=__version__,
            pid=os.getpid(),
            stage=self.stage,
            uptime_s=now - self._began,
            addresses=self._executor.addresses,
            plan=self._plan,
            membership=membership,
            membership_age_s=now - heard_s,
            incarnations=self._deployment.incarnations,
            loads=self._deployment.loads.ranks if self._deployment.loads else [],
        )


async def _receive(reader: asyncio.StreamReader) -> Question:
    """The next question.

    Raises:
        ValueError: It is longer than any.
        msgspec.MsgspecError: It is none.
        asyncio.IncompleteReadError: The client went away.
    """
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > MAX_QUESTION_BYTES:
        raise ValueError(f"{length} bytes, at most {MAX_QUESTION_BYTES} are taken")
    return QUESTION.decode(await reader.readexactly(length))


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """Sends.

    Raises:
        OSError: The client is gone, or has not taken it within the deadline.
    """
    writer.write(framed(answer))
    async with asyncio.timeout(QUESTION_S):
        await writer.drain()
