"""One answer being made: from the outputs of an engine to text, whole or as a stream of events."""

import asyncio
import logging
import time

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.frontend.answers import DONE, PromptTokensDetails, Usage, Writer, event
from engine.frontend.errors import ApiError, ClientLeft, InternalError
from engine.frontend.gate import STREAM_ERROR
from engine.frontend.generation import Generation
from engine.frontend.transcript import Transcript
from engine.metrics import HTTP_DISCONNECTS, HTTP_TIME_TO_FIRST_TOKEN, Metrics
from engine.protocol import FinishReason
from engine.wording import counted

logger = logging.getLogger(__name__)

_CLIENT_LEFT = "client left"
_UNFINISHED = "not finished"


class Completion:
    """One answer: the text that an engine generates, until it ends or nobody wants it any more.

    Args:
        request_id: In log lines.
        metrics: Of the front end.
    """

    def __init__(
        self,
        request_id: str,
        generation: Generation,
        transcript: Transcript,
        num_prompt_tokens: int,
        metrics: Metrics,
    ) -> None:
        self._request_id = request_id
        self._generation = generation
        self._transcript = transcript
        self._num_prompt_tokens = num_prompt_tokens
        self._metrics = metrics
        self._has_begun = False
        self._num_cached_tokens = 0
        self._start_s = time.monotonic()
        self._outcome = _UNFINISHED
        self._is_closed = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while there is more to read."""
        return self._transcript.finish_reason

    @property
    def usage(self) -> Usage:
        num_tokens = self._transcript.num_tokens
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=num_tokens,
            total_tokens=self._num_prompt_tokens + num_tokens,
            prompt_tokens_details=PromptTokensDetails(self._num_cached_tokens),
        )

    async def read(self) -> str:
        """The text that has come since the last call, perhaps none.

        Raises:
            ApiError: The request has failed.
        """
        try:
            outputs = await self._generation.take()
        except ApiError as problem:
            self._outcome = _CLIENT_LEFT if isinstance(problem, ClientLeft) else problem.message
            raise
        if not self._has_begun:
            self._has_begun = True
            self._metrics.observe(HTTP_TIME_TO_FIRST_TOKEN, time.monotonic() - self._start_s)
        text = ""
        for output in outputs:
            self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
            text += self._transcript.add(output.token_ids, output.finish_reason)
            if self.finish_reason is not None:
                self._outcome = self.finish_reason.value
                self._generation.close(
                    self.finish_reason
                )  # a stop string ends it before the engine does
                break
        return text

    def abandon(self) -> None:
        """The client has left: whoever reads gets `ClientLeft`."""
        self._generation.fail(ClientLeft())

    def close(self) -> None:
        """Ends it, whatever state it is in. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._generation.close()
        if self._outcome is _CLIENT_LEFT:
            self._metrics.add(HTTP_DISCONNECTS)
        logger.info(
            "request %s: rank %s, %s, %s, %.3f s: %s",
            self._request_id,
            self._generation.rank,
            counted(self._num_prompt_tokens, "prompt token"),
            counted(self._transcript.num_tokens, "completion token"),
            time.monotonic() - self._start_s,
            self._outcome,
        )


async def whole_answer(completion: Completion, writer: Writer, receive: Receive) -> Response:
    """The answer when it is complete; a client that leaves before ends it.

    Raises:
        ApiError: The request has failed, or the client has left.
    """
    watch = asyncio.create_task(_watch(receive, completion))
    try:
        text = ""
        while completion.finish_reason is None:
            text += await completion.read()
        body = writer.whole(text, completion.finish_reason, completion.usage)
        return Response(body, media_type="application/json")
    finally:
        watch.cancel()
        completion.close()


class AnswerStream(Response):
    """The answer as server-sent events, as it is made; a client that leaves ends it.

    Each token costs one turn through here: nothing lies between this loop and the server.
    """

    media_type = "text/event-stream"

    def __init__(self, completion: Completion, writer: Writer, includes_usage: bool) -> None:
        # Not the base class's, which would announce the length of a body.
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache"})
        self._completion = completion
        self._writer = writer
        self._includes_usage = includes_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(_watch(receive, self._completion))
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            end = await self._stream(send)
            await send({"type": "http.response.body", "body": end + DONE})
        finally:
            watch.cancel()
            self._completion.close()

    async def _stream(self, send: Send) -> bytes:
        """Sends events as outputs come; the last ones, with all that is known at the end."""
        completion, writer = self._completion, self._writer
        try:
            events = writer.first()
            while True:
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                text = await completion.read()
                events = writer.delta(text) if text else b""
                if completion.finish_reason is not None:
                    events += writer.last(completion.finish_reason)
                    return events + writer.usage(completion.usage) * self._includes_usage
        except ClientLeft:
            return b""
        except ApiError as problem:
            failure = problem
        except Exception:  # the status has been sent: the stream must say it
            logger.exception("a stream failed")
            failure = InternalError()
        STREAM_ERROR.set(failure.code or failure.type)
        return event(failure.body())


async def _watch(receive: Receive, completion: Completion) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    completion.abandon()
