"""One answer being made: from the outputs of engines to texts, one for each choice."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.frontend.answers import PromptTokensDetails, Usage
from engine.frontend.client import EngineClient
from engine.frontend.echo import Echo
from engine.frontend.errors import (
    ApiError,
    ClientLeft,
    RequestTimedOut,
    Unavailable,
)
from engine.frontend.generation import Generation
from engine.frontend.transcript import Piece, ScoredToken, Transcript
from engine.metrics import HTTP_DISCONNECTS, HTTP_TIME_TO_FIRST_TOKEN, Metrics
from engine.protocol import FinishReason, RequestOutput
from engine.sampling import SamplingParams
from engine.wording import counted

logger = logging.getLogger(__name__)

MAX_UNREAD_TOKENS = 1024
"""Of one choice, beyond what the sockets hold: a client that lets more wait reads too slowly."""
_UNFINISHED = "not finished"


@dataclass(frozen=True)
class Prompt:
    """What is to be continued, and how: once for each of `sampling`.

    Attributes:
        echo: What each answer begins with.
    """

    token_ids: list[int]
    sampling: list[SamplingParams]
    echo: Echo | None = None


@dataclass(eq=False)
class Choice:
    """One of an answer's texts.

    Attributes:
        followers: Choices of the same prompt, which wait until it has been computed once.
        is_first: Of its prompt.
        has_begun: Something of it has been read.
        prompt_tokens: With their scores, if they are part of the answer.
    """

    index: int
    prompt: Prompt
    sampling: SamplingParams
    transcript: Transcript
    followers: list["Choice"] = field(default_factory=list)
    generation: Generation | None = None
    is_first: bool = False
    has_begun: bool = False
    prompt_tokens: list[ScoredToken] = field(default_factory=list)

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while there is more to read."""
        return self.transcript.finish_reason


class Completion:
    """The texts that engines generate, until they end or nobody wants them any more.

    Of a prompt's choices the first is sent alone. The others follow when its first token has come,
    to the same rank: there they find the prompt in the prefix cache.

    Args:
        request_id: In log lines.
        new_transcript: Makes the transcript of a choice.
        rank: The one that the client wants.
        timeout_s: After so many seconds it fails.
        metrics: Of the front end.

    Attributes:
        choices: The choices of the first prompt, then those of the next.
        on_failure: Called when it has failed for a reason that no engine gave.
        on_overflow: Called while more waits to be read than should.

    Raises:
        Unavailable: No rank takes it.
    """

    def __init__(
        self,
        request_id: str,
        client: EngineClient,
        prompts: Sequence[Prompt],
        new_transcript: Callable[[Prompt], Transcript],
        rank: int | None,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._request_id = request_id
        self._client = client
        self._rank = rank
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._news: dict[Choice, None] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._problem: ApiError | None = None
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        # Kept as sums: every event may tell them, and there may be a thousand choices.
        self._num_tokens = self._num_cached_tokens = 0
        self._has_begun = self._is_closed = False
        self._outcome = _UNFINISHED
        self._start_s = time.monotonic()
        self.on_failure: Callable[[], None] = lambda: None
        self.on_overflow: Callable[[], None] = lambda: None
        self.choices: list[Choice] = []
        leaders: list[Choice] = []
        for prompt in prompts:
            first, *others = (
                Choice(len(self.choices) + number, prompt, sampling, new_transcript(prompt))
                for number, sampling in enumerate(prompt.sampling)
            )
            first.is_first, first.followers = True, others
            leaders.append(first)
            self.choices += (first, *others)
        self._num_open = len(self.choices)
        self._timer = self._loop.call_later(timeout_s, self.fail, RequestTimedOut(timeout_s))
        try:
            for leader in leaders:
                self._submit(leader, rank)
        except BaseException as problem:
            self._outcome = str(problem)
            self.close()
            raise

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to read."""
        return not self._num_open

    @property
    def usage(self) -> Usage:
        """So far. A prompt counts once, and so does what was cached before its first choice."""
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            total_tokens=self._num_prompt_tokens + self._num_tokens,
            prompt_tokens_details=PromptTokensDetails(self._num_cached_tokens),
        )

    async def read(self) -> list[tuple[Choice, Piece]]:
        """The choices of which something has come since the last call, with what is new.

        Raises:
            ApiError: The request has failed.
        """
        if not self._news and self._problem is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        try:
            if self._problem is not None:
                raise self._problem
            news, self._news = self._news, {}
            open_ones = [choice for choice in news if choice.finish_reason is None]
            return [(choice, self._take(choice)) for choice in open_ones]
        except ApiError as problem:
            self._outcome = problem.message
            raise

    def fail(self, problem: ApiError) -> None:
        """Whoever reads gets this, unless another problem came before."""
        if self._problem is None and not self._is_closed:
            self._problem = problem
            self._wake()
            self.on_failure()

    def close(self) -> None:
        """Ends it, whatever state it is in. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        generations = [each.generation for each in self.choices if each.generation is not None]
        for generation in generations:
            generation.close()
        if isinstance(self._problem, ClientLeft) and not self.is_complete:
            self._metrics.add(HTTP_DISCONNECTS)
        ranks = sorted({generation.rank for generation in generations})
        logger.info(
            "request %s: rank %s, %s, %s, %.3f s: %s",
            self._request_id,
            ", ".join(map(str, ranks)) or "none",
            counted(self._num_prompt_tokens, "prompt token"),
            counted(self._num_tokens, "completion token"),
            time.monotonic() - self._start_s,
            self._outcome,
        )

    def _submit(self, choice: Choice, rank: int | None) -> None:
        try:
            generation = self._client.submit(
                choice.prompt.token_ids, choice.sampling, rank, self._request_id
            )
        except Unavailable:
            if rank == self._rank:
                raise
            # The rank that has the prompt takes no more: any other will do.
            generation = self._client.submit(
                choice.prompt.token_ids, choice.sampling, self._rank, self._request_id
            )
        choice.generation = generation
        generation.watch(lambda: self._note(choice, generation))

    def _note(self, choice: Choice, generation: Generation) -> None:
        """Something has come for a choice."""
        self._news[choice] = None
        self._wake()
        if generation.num_unread > MAX_UNREAD_TOKENS:
            self.on_overflow()

    def _take(self, choice: Choice) -> Piece:
        """What is new of a choice that has news."""
        generation = choice.generation
        assert generation is not None
        outputs = generation.take()
        if not self._has_begun:
            self._has_begun = True
            self._metrics.observe(HTTP_TIME_TO_FIRST_TOKEN, time.monotonic() - self._start_s)
        if choice.is_first and not choice.has_begun:
            self._num_cached_tokens += outputs[0].num_cached_tokens
        piece = Piece() if choice.has_begun else _begin(choice, outputs)
        followers, choice.followers = choice.followers, []
        for follower in followers:
            self._submit(follower, generation.rank)
        num_before = choice.transcript.num_tokens
        for output in outputs:
            new = choice.transcript.add(
                output.token_ids, output.finish_reason, output.logprobs, output.stop_token_id
            )
            piece.append(new)
            if choice.finish_reason is not None:
                self._note_end()
                generation.close(choice.finish_reason)  # a stop string comes before the engine
                break
        self._num_tokens += choice.transcript.num_tokens - num_before
        return piece

    def _note_end(self) -> None:
        self._num_open -= 1
        if self.is_complete:
            reasons = {each.finish_reason.value for each in self.choices if each.finish_reason}
            self._outcome = ", ".join(sorted(reasons))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _begin(choice: Choice, outputs: Sequence[RequestOutput]) -> Piece:
    """What comes before a choice's own text: the prompt, if it is to be repeated."""
    choice.has_begun = True
    echo = choice.prompt.echo
    if echo is None:
        return Piece()
    if choice.sampling.prompt_logprobs is not None:
        scores = [each for output in outputs for each in output.prompt_logprobs]
        choice.prompt_tokens = echo.tokens(choice.prompt.token_ids, scores)
        for follower in choice.followers:
            follower.prompt_tokens = choice.prompt_tokens
    return Piece(echo.text, list(choice.prompt_tokens))
