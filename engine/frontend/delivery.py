"""How an answer reaches the client: whole, or as a stream of events."""

import asyncio
import logging

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from engine.frontend.answers import DONE, Usage, Writer, event
from engine.frontend.completion import Completion
from engine.frontend.connection import abort
from engine.frontend.current import REQUEST_ID, STREAM_ERROR
from engine.frontend.errors import ApiError, ClientLeft, InternalError, SlowReader
from engine.frontend.transcript import Piece

logger = logging.getLogger(__name__)

MANY_TOKENS = 2048
"""With log-probabilities: more take so long to write that others get their turn meanwhile."""


async def whole_answer(completion: Completion, writer: Writer, receive: Receive) -> Response:
    """The answer when it is complete; a client that leaves before ends it.

    Raises:
        ApiError: The request has failed, or the client has left.
    """
    watch = asyncio.create_task(_watch(receive, completion))
    try:
        pieces = [Piece() for _ in completion.choices]
        while not completion.is_complete:
            for choice, piece in await completion.read():
                pieces[choice.index].append(piece)
        ends = [choice.transcript.end for choice in completion.choices]
        told = list(zip(pieces, ends, strict=True))
        if sum(len(piece.tokens) for piece in pieces) > MANY_TOKENS:
            body = await asyncio.to_thread(writer.whole, told, completion.usage)
        else:
            body = writer.whole(told, completion.usage)
        return Response(body, media_type="application/json")
    finally:
        watch.cancel()
        completion.close()


class AnswerStream(Response):
    """The answer as server-sent events, as it is made; a client that leaves ends it.

    Each token costs one turn through here: nothing lies between this loop and the server. A client
    that does not read makes `send` wait, and what comes meanwhile is bounded by the completion.

    Args:
        includes_usage: One more event at the end tells the usage.
        shows_usage: So does every event, as far as it goes then.
    """

    media_type = "text/event-stream"

    def __init__(
        self, completion: Completion, writer: Writer, includes_usage: bool, shows_usage: bool
    ) -> None:
        # Not the base class's, which would announce the length of a body.
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache"})
        self._completion = completion
        self._writer = writer
        self._includes_usage, self._shows_usage = includes_usage, shows_usage
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        completion = self._completion

        def leave_stuck() -> None:
            if self._is_sending:  # it can be told nothing
                abort(scope)

        def leave_slow() -> None:
            if self._is_sending:
                completion.fail(SlowReader())

        async def guarded(message: Message) -> None:
            self._is_sending = True
            await send(message)
            self._is_sending = False

        completion.on_failure, completion.on_overflow = leave_stuck, leave_slow
        watch = asyncio.create_task(_watch(receive, completion))
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await guarded(start)
            end = await self._stream(guarded)
            await guarded({"type": "http.response.body", "body": end + DONE})
        finally:
            watch.cancel()
            completion.close()

    async def _stream(self, send: Send) -> bytes:
        """Sends events as outputs come; the last ones, with all that is known at the end."""
        completion = self._completion
        try:
            events = b"".join(
                self._writer.first(choice.index, self._usage) for choice in completion.choices
            )
            while True:
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                events = await self._next_events()
                if completion.is_complete:
                    return events + self._writer.usage(completion.usage) * self._includes_usage
        except ClientLeft:
            return b""
        except ApiError as problem:
            failure = problem
        except Exception:  # the status has been sent: the stream must say it
            logger.exception("request %s failed", REQUEST_ID.get())
            failure = InternalError()
        STREAM_ERROR.set(failure.code or failure.type)
        return event(failure.body())

    async def _next_events(self) -> bytes:
        events, writer = b"", self._writer
        for choice, piece in await self._completion.read():
            if piece:
                events += writer.delta(choice.index, piece, self._usage)
            if len(piece.tokens) > MANY_TOKENS:
                await asyncio.sleep(0)
            if choice.finish_reason is not None:
                events += writer.last(choice.index, choice.transcript.end, self._usage)
        return events

    @property
    def _usage(self) -> Usage | None:
        return self._completion.usage if self._shows_usage else None


async def _watch(receive: Receive, completion: Completion) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    completion.fail(ClientLeft())
