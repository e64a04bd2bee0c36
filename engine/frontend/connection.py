"""One HTTP connection, which a client cannot keep open for nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from engine.frontend.errors import ApiError, BodyTooLate, HeadTooLarge, InvalidRequest

MAX_HEAD_BYTES = 65536
"""Of a request, apart from its body. Other servers take 8 to 64 KiB."""
MAX_PIPELINED = 100
"""Requests that a client may send before the first of them has been answered."""
_ABORT = "flotilla.abort"


def abort(scope: Scope) -> None:
    """Drops the connection of a request at once, with what has not been sent."""
    call: Callable[[], None] = scope["extensions"][_ABORT]["call"]
    call()


class Connection(HttpToolsProtocol):
    """uvicorn's, with deadlines and limits where it has none, and OpenAI's error body.

    Args:
        receive_s: Seconds for a request's head from the first byte on, or from the connection on,
            and for the client to take the rest of an answer that is complete.
    """

    def __init__(self, *args: Any, receive_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_s = receive_s
        self._has_begun = False
        self._num_head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._head_timer)
        _cancel(self._rest_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
        elif self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES))
        elif self._owes_request and self._head_timer is None:
            self._wait_for_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun = True
        self.scope["extensions"] = {_ABORT: {"call": self.transport.abort}}

    def on_headers_complete(self) -> None:
        self._has_begun = False
        _cancel(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # Twice: what frames a chunk may be as long as the chunk.
        self._num_head_bytes = max(0, self._num_head_bytes - 2 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_begun and self._head_timer is None:  # the next one, while this was answered
            self._unset_keepalive_if_required()
            self._wait_for_head()
        _cancel(self._rest_timer)
        self._rest_timer = self.loop.call_later(self._receive_s, self._drop_unread)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    @property
    def _owes_request(self) -> bool:
        """Whether it is the client's turn."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self._receive_s, self._end_wait)

    def _end_wait(self) -> None:
        self._head_timer = None
        if not self._owes_request or self.transport.is_closing():
            return
        if self._has_begun:
            message = f"The request was not complete after {self._receive_s:g} s."
            self._refuse(BodyTooLate(message, code="request_too_late"))
        self.transport.close()

    def _drop_unread(self) -> None:
        if self._owes_request and self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, problem: ApiError) -> None:
        """Answers what has not become a request; nothing can be said amid another answer."""
        if not self._owes_request and (self._has_begun or self.cycle.response_started):
            self.transport.abort()
            return
        content = msgspec.json.encode(problem.body())
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[problem.status] + head % len(content) + content)
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
