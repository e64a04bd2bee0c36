"""One streamed answer over HTTP: bytes in, times and token counts out.

Why not a client library: docs/decisions/0007-benchmark-client.md.
"""

import asyncio
import time
from array import array
from typing import Any, cast

import httptools
import msgspec

from launcher.bench.messages import Target

_MAX_SHOWN = 300
"""Characters of a refusal that are kept."""


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """An older name of it."""


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None


class Chunk(msgspec.Struct):
    """What is read of an event; whatever else it holds is skipped."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(Chunk)


class Failure(Exception):
    """Why a request failed.

    Attributes:
        cause: The same for all that failed so.
        seen: What was seen of it.
    """

    def __init__(self, cause: str, seen: str = "") -> None:
        super().__init__(f"{cause}: {seen}" if seen else cause)
        self.cause, self.seen = cause, seen[:_MAX_SHOWN]


class Stream(asyncio.Protocol):
    """Sends a request once it is connected, and follows the answer to its end.

    Args:
        request: Header and body.
        keeps_text: For the next turn of a session.

    Attributes:
        ended: Has no result, or a `Failure`.
        first_s, last_s: When the first and the last part of the answer came, or None.
        done_s: When the answer was complete.
        num_parts: Events with a part of the answer.
        gaps: Seconds between them.
        usage: As the server counts, if it says so.
        text: Of the answer, if it is kept.
    """

    def __init__(self, request: bytes, keeps_text: bool = False) -> None:
        self._request, self._keeps_text = request, keeps_text
        self._parser = httptools.HttpResponseParser(self)
        self._rest, self._refusal = b"", b""
        self._status, self._now_s = 0, 0.0
        self._is_done = False
        self._error: Any = None
        self._transport: asyncio.WriteTransport | None = None
        self._parts: list[str] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.done_s: float | None = None
        self.num_parts = 0
        self.gaps = array("f")
        self.usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now_s = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._end(Failure("malformed answer", str(problem.__context__ or problem)))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or not self._status:
            self._end(Failure("connection lost", str(exc or "closed by the server")))
        else:
            self._end(self._failure())  # an answer without a length ends so

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._status != 200:
            self._refusal = (self._refusal + body)[:_MAX_SHOWN]
            return
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def on_message_complete(self) -> None:
        self._end(self._failure())

    def close(self) -> None:
        """Gives the answer up."""
        self.ended.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _failure(self) -> Failure | None:
        """Of an answer that goes on no longer."""
        if self._status != 200:
            return Failure(f"HTTP {self._status}", self._refusal.decode(errors="replace"))
        if self._error is not None:
            return Failure("error event", str(self._error))
        if not self._is_done:
            return Failure("ended early", f"after {self.num_parts} parts, without [DONE]")
        return None

    def _take(self, data: bytes) -> None:
        """One event."""
        if data == b"[DONE]":
            self._is_done, self.done_s = True, self._now_s
            return
        chunk = _CHUNK.decode(data)
        self._error = chunk.error or self._error
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            delta = choice.delta
            if delta is None:
                part = choice.text
                is_part = part is not None
            else:
                part = delta.content or delta.reasoning or delta.reasoning_content
                # The first event of a chat names the role, the last one the reason of its end.
                is_part = bool(part)
            if is_part:
                self._note_part(part or "")

    def _note_part(self, part: str) -> None:
        if self.last_s is None:
            self.first_s = self._now_s
        else:
            self.gaps.append(self._now_s - self.last_s)
        self.last_s = self._now_s
        self.num_parts += 1
        if self._keeps_text:
            self._parts.append(part)

    def _end(self, failure: Failure | None) -> None:
        if self.ended.done():
            return
        if failure is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(failure)
        if self._transport is not None:
            self._transport.close()


def http_request(target: Target, body: bytes) -> bytes:
    """Header and body of a POST."""
    port = "" if target.port == (443 if target.tls else 80) else f":{target.port}"
    host = f"[{target.host}]" if ":" in target.host else target.host
    key = f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {host}{port}\r\n{key}"
        "Content-Type: application/json\r\nAccept: text/event-stream\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
