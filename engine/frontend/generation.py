"""One request in flight, seen from its reader."""

import asyncio
from collections.abc import Callable

from engine.frontend.errors import ApiError
from engine.frontend.load_balancer import work_of
from engine.protocol import AddRequest, FinishReason, RequestOutput


class Generation:
    """The outputs of one request, as they come.

    A reader takes all that came since it last did, so what waits for a slow one is never more than
    `max_tokens` tokens.

    Attributes:
        sequence: Number of the `AddRequest` that asked for it.
        sent_s: When it was sent.
        work: What it still costs its rank, for the load balancer.
    """

    __slots__ = (
        "_max_tokens",
        "_num_output_tokens",
        "_num_prompt_tokens",
        "_on_close",
        "_outputs",
        "_problem",
        "_waiter",
        "rank",
        "request_id",
        "sent_s",
        "sequence",
        "work",
    )

    def __init__(
        self,
        rank: int,
        request: AddRequest,
        on_close: Callable[["Generation", FinishReason], None],
        sent_s: float,
    ) -> None:
        self.rank = rank
        self.request_id = request.request_id
        self.sequence = request.sequence
        self.sent_s = sent_s
        self._num_prompt_tokens = len(request.prompt_token_ids)
        self._num_output_tokens = 0
        self._max_tokens = request.sampling.max_tokens
        self.work = work_of(self._num_prompt_tokens, 0, self._max_tokens)
        self._on_close = on_close
        self._outputs: list[RequestOutput] = []
        self._problem: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> list[RequestOutput]:
        """The outputs since the last call, at least one.

        Raises:
            ApiError: The request has failed; outputs that nobody took are dropped.
        """
        if not self._outputs and self._problem is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._problem is not None:
            raise self._problem
        outputs, self._outputs = self._outputs, []
        return outputs

    def close(self, reason: FinishReason = FinishReason.abort) -> None:
        """Nobody reads any more: the engine gives up what has not finished. May be called again.

        Args:
            reason: What the engine shall count it as.
        """
        self._on_close(self, reason)

    def deliver(self, output: RequestOutput) -> None:
        self._num_output_tokens += len(output.token_ids)
        self.work = work_of(self._num_prompt_tokens, self._num_output_tokens, self._max_tokens)
        self._outputs.append(output)
        self._wake()

    def fail(self, problem: ApiError) -> None:
        self._problem = problem
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
