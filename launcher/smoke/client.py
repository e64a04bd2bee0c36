"""HTTP with a front end over its private unix socket, and the answers as typed values."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from engine.protocol import Member
from launcher.smoke.results import CheckFailed, FrontEndGone

RANK_HEADER = "X-Data-Parallel-Rank"
_DATA = b"data: "
_DONE = b"[DONE]"
_MAX_SHOWN = 300
"""Characters of an unexpected body in a message."""

T = TypeVar("T")


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True):
    """Whole, or a chunk of a stream."""

    choices: tuple[Choice, ...]
    usage: Usage | None = None


class Error(msgspec.Struct, frozen=True):
    """OpenAI's: every key must be there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: Error


class Ready(msgspec.Struct, frozen=True):
    ready_ranks: list[int]


class PlanDigest(msgspec.Struct, frozen=True):
    digest: str


class Plan(msgspec.Struct, frozen=True):
    plan: PlanDigest
    actual: list[Member]
    drift: list[str]


class Client:
    """Asks one front end; every request has a connection of its own.

    Args:
        path: Of the unix socket.
        answer_s: Seconds until an answer must be complete.
    """

    def __init__(self, path: str, answer_s: float) -> None:
        self._path, self._answer_s = path, answer_s

    def get(self, path: str, type: type[T]) -> T:
        """The body of an answer with status 200.

        Raises:
            CheckFailed: There is none in time, or of another form.
        """
        return decoded(f"GET {path}", self._ask("GET", path), type)

    def text(self, path: str) -> str:
        return self._ask("GET", path).decode()

    def post(
        self, path: str, body: Any, type: type[T], rank: int | None = None, status: int = 200
    ) -> T:
        """As `get`.

        Args:
            rank: That shall answer; None: any.
        """
        return decoded(f"POST {path}", self._ask("POST", path, body, rank, status), type)

    @contextmanager
    def stream(self, body: Any, rank: int) -> Iterator[Iterator[Completion]]:
        """The chunks of a streamed completion; leaving the context closes the connection.

        The chunks end after `[DONE]`.

        Raises:
            CheckFailed: As `get`; also when the stream ends without `[DONE]`, or goes on after it.
        """
        asked = "POST /v1/completions, streamed"
        deadline = time.monotonic() + self._answer_s
        with self._response(asked, "POST", "/v1/completions", body, rank) as response:
            _check_status(asked, response, 200)
            kind = response.headers.get_content_type()
            if kind != "text/event-stream":
                raise CheckFailed(f"{asked}: expected text/event-stream, seen {kind}")
            yield self._chunks(asked, response, deadline)

    def _chunks(
        self, asked: str, response: http.client.HTTPResponse, deadline: float
    ) -> Iterator[Completion]:
        while True:
            line = response.readline()
            if time.monotonic() > deadline:
                raise CheckFailed(f"{asked}: expected [DONE] within {self._answer_s:g} s")
            if not line:
                raise CheckFailed(f"{asked}: expected [DONE], seen the end of the stream")
            if line == b"\n":
                continue
            data = line.removeprefix(_DATA).rstrip(b"\n")
            if data == _DONE:
                break
            if not line.startswith(_DATA):
                raise CheckFailed(f"{asked}: expected a line of data, seen {_shown(line)}")
            yield decoded(asked, data, Completion)
        rest = response.read().strip()
        if rest:
            raise CheckFailed(f"{asked}: expected nothing after [DONE], seen {_shown(rest)}")

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        rank: int | None = None,
        status: int = 200,
    ) -> bytes:
        asked = f"{method} {path}"
        with self._response(asked, method, path, body, rank) as response:
            return _check_status(asked, response, status)

    @contextmanager
    def _response(
        self, asked: str, method: str, path: str, body: Any, rank: int | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json"}
        if rank is not None:
            headers[RANK_HEADER] = str(rank)
        connection = _UnixConnection(self._path, self._answer_s)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            with contextlib.closing(connection.getresponse()) as response:
                yield response
        except TimeoutError:
            raise CheckFailed(
                f"{asked}: expected an answer within {self._answer_s:g} s (smoke.answer_s), "
                "seen none"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError) as problem:
            raise FrontEndGone(f"{asked}: nobody listens any more") from problem
        except (OSError, http.client.HTTPException) as problem:
            raise CheckFailed(f"{asked}: expected an answer, seen {problem!r}") from problem
        finally:
            connection.close()


def decoded(asked: str, body: bytes, type: type[T]) -> T:
    """The body as a value.

    Raises:
        CheckFailed: It has another form, OpenAI's error body among them.
    """
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.DecodeError as problem:
        raise CheckFailed(
            f"{asked}: expected {type.__name__}, {problem}; seen {_shown(body)}"
        ) from problem


def _check_status(asked: str, response: http.client.HTTPResponse, status: int) -> bytes:
    """The whole body; of a stream that has begun well nothing is read.

    Raises:
        CheckFailed: The status is another.
    """
    is_stream = response.headers.get_content_type() == "text/event-stream"
    body = b"" if is_stream else response.read()
    if response.status == status:
        return body
    if response.status == 503 and b'"draining"' in body:
        raise FrontEndGone(f"{asked}: the deployment is draining")
    raise CheckFailed(f"{asked}: expected status {status}, seen {response.status} {_shown(body)}")


def _shown(body: bytes) -> str:
    return body.decode(errors="replace")[:_MAX_SHOWN]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
