"""The side of the control socket that asks: waits with deadlines, and names who does not answer."""

import contextlib
import socket
import time
from collections.abc import Iterator

import msgspec

from launcher.control import (
    ANSWER,
    HEADER,
    MAX_ANSWER_BYTES,
    SOCKET_NAME,
    Answer,
    GetState,
    Question,
    Rejected,
    State,
    framed,
)
from launcher.errors import LauncherError, Refused
from launcher.run_directory import Holder, running_names

ANSWER_S = 5.0
"""Deadline of each answer. A launcher sends them at once, or, while it ends, every second."""
_RETRY_S = 0.02


class NoAnswer(LauncherError):
    """A launcher is there and does not say what it should."""


class ControlClient:
    """A connection to the launcher of a running deployment, to be used in `with`.

    Raises:
        Refused: No deployment of this name runs.
        NoAnswer: Its launcher does not listen.
    """

    def __init__(self, name: str) -> None:
        holder = Holder.find(name)
        if holder is None:
            raise _not_running(name)
        self._name, self._holder = name, holder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> "ControlClient":
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._holder.close()

    def ask(self, question: Question) -> Iterator[Answer]:
        """All answers, until the launcher closes the connection.

        Raises:
            NoAnswer: One is not there in time, or is none.
        """
        # One that takes no more questions says so and closes, perhaps before this one is there.
        with self._explained(), contextlib.suppress(BrokenPipeError):
            self._socket.sendall(framed(question))
        while (answer := self._next_answer()) is not None:
            if isinstance(answer, Rejected):
                raise NoAnswer(f"{self._launcher} does not take the question: {answer.reason}")
            yield answer

    def wait_until_gone(self, deadline_s: float) -> bool:
        """Whether the launcher has ended in time: the name and the port are free again."""
        deadline = time.monotonic() + deadline_s
        while self._holder.is_there():
            if time.monotonic() > deadline:
                return False
            time.sleep(_RETRY_S)
        return True

    def _connect(self) -> None:
        """Waits for a launcher that is about to listen: it holds the name a moment before."""
        deadline = time.monotonic() + ANSWER_S
        self._socket.settimeout(ANSWER_S)
        with self._explained():
            while True:
                try:
                    self._socket.connect(str(self._holder.path / SOCKET_NAME))
                except (FileNotFoundError, ConnectionRefusedError):
                    if not self._holder.is_there():
                        raise _not_running(self._name) from None
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_RETRY_S)
                else:
                    return

    def _next_answer(self) -> Answer | None:
        with self._explained():
            header = self._receive(HEADER.size)
            if not header:
                return None
            (length,) = HEADER.unpack(header)
            if length > MAX_ANSWER_BYTES:
                raise ValueError(f"an answer of {length} bytes")
            return ANSWER.decode(self._receive(length))

    def _receive(self, length: int) -> bytes:
        """So many bytes; none if the connection is closed before the first."""
        deadline = time.monotonic() + ANSWER_S
        received = bytearray()
        while len(received) < length:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._socket.recv(min(length - len(received), 1 << 20))
            if not part and not received:
                break
            if not part:
                raise ConnectionResetError("closed in the middle of an answer")
            received += part
        return bytes(received)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, BlockingIOError):  # the latter: too many wait to be accepted
            raise NoAnswer(
                f"{self._launcher} does not answer for {ANSWER_S:g} s",
                f"kill -CONT {self._holder.pid} if it was stopped, kill -9 ends all of it",
            ) from None
        except (ValueError, msgspec.MsgspecError) as problem:
            raise NoAnswer(f"{self._launcher} is of another version: {problem}") from problem
        except OSError as problem:
            raise NoAnswer(f"{self._launcher} does not answer: {problem.strerror}") from problem

    @property
    def _launcher(self) -> str:
        return f"{self._name}: launcher pid {self._holder.pid}"


def get_state(name: str) -> State:
    """What a deployment's launcher knows.

    Raises:
        Refused: No deployment of this name runs.
        NoAnswer: Its launcher does not answer.
    """
    with ControlClient(name) as client:
        for answer in client.ask(GetState()):
            if isinstance(answer, State):
                return answer
    raise NoAnswer(f"{name}: ended while it was asked")


def _not_running(name: str) -> Refused:
    others = running_names()
    message = f"no deployment of this name runs: {name}"
    if not others:
        return Refused(message, f"action=serve name={name} starts it")
    return Refused(
        f"{message} (running: {', '.join(others)})", "name=NAME of the one that is meant"
    )
