"""One request in flight, seen from its reader."""

from collections.abc import Callable

from engine.frontend.errors import ApiError
from engine.frontend.load_balancer import work_of
from engine.protocol import AddRequest, FinishReason, RequestOutput


class Generation:
    """The outputs of one request, as they come.

    Attributes:
        num_unread: Tokens that have come and that nobody has taken.
        is_queued: Nothing has come yet.
        sequence: Number of the `AddRequest` that asked for it.
        sent_s: When it was sent.
        work: What it still costs its rank, for the load balancer.
    """

    __slots__ = (
        "_max_tokens",
        "_num_output_tokens",
        "_num_prompt_tokens",
        "_on_close",
        "_on_news",
        "_outputs",
        "_problem",
        "is_queued",
        "num_unread",
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
        self._on_news: Callable[[], None] = lambda: None
        self.num_unread = 0
        self.is_queued = True

    def watch(self, on_news: Callable[[], None]) -> None:
        """Lets somebody know when outputs have come, or it has failed."""
        self._on_news = on_news

    def take(self) -> list[RequestOutput]:
        """The outputs since the last call.

        Raises:
            ApiError: The request has failed; outputs that nobody took are dropped.
        """
        if self._problem is not None:
            raise self._problem
        outputs, self._outputs = self._outputs, []
        self.num_unread = 0
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
        self.num_unread += len(output.token_ids)
        self.is_queued = False
        self._on_news()

    def fail(self, problem: ApiError) -> None:
        self._problem = problem
        self._on_news()
