"""What an engine core counts and times: of each step, each request, each token. Pure."""

from collections.abc import Iterable, Sequence

from engine.config import Role
from engine.core.request import Request
from engine.core.scheduler import Produced
from engine.metrics import (
    E2E_REQUEST_LATENCY,
    GENERATION_TOKENS,
    INTER_TOKEN_LATENCY,
    ITERATION_TOKENS,
    PREFIX_CACHE_HITS,
    PREFIX_CACHE_QUERIES,
    PROMPT_TOKENS,
    REFUSED_REQUESTS,
    REQUEST_GENERATION_TOKENS,
    REQUEST_PROMPT_TOKENS,
    REQUEST_QUEUE_TIME,
    REQUEST_SUCCESS,
    STEP_TIME,
    TIME_TO_FIRST_TOKEN,
    Metrics,
)
from engine.protocol import FinishReason

_SMOOTHING = 0.1
"""Weight of the newest step in the moving average: it looks back about ten steps."""


class EngineMetrics:
    """Counts for one rank. Times are the caller's clock, in seconds.

    Attributes:
        values: Everything counted.
        step_s: How long a step takes: moving average; 0 before the first.
    """

    def __init__(self, prefix_caching: bool) -> None:
        self.values = Metrics(Role.engine)
        self.step_s = 0.0
        self._prefix_caching = prefix_caching

    def note_refused(self, reason: str) -> None:
        self.values.add(REFUSED_REQUESTS, 1, (reason,))

    def note_ended(self, request: Request, reason: FinishReason, now_s: float) -> None:
        """Takes a request's end. The time of one that was given up says nothing of the engine."""
        self.values.add(REQUEST_SUCCESS, 1, (reason.value,))
        self.values.observe(REQUEST_PROMPT_TOKENS, request.num_prompt_tokens)
        self.values.observe(REQUEST_GENERATION_TOKENS, request.num_outputs)
        if reason is not FinishReason.abort:
            self.values.observe(E2E_REQUEST_LATENCY, now_s - request.arrived_s)

    def note_step(
        self,
        began_s: float,
        ended_s: float,
        num_tokens: int,
        produced: Sequence[Produced],
        admitted: Iterable[Request],
    ) -> None:
        """Takes one step's work and outcome.

        Args:
            num_tokens: Computed, of prompts and outputs.
            admitted: Requests that ran for the first time.
        """
        values = self.values
        for request in admitted:
            values.observe(REQUEST_QUEUE_TIME, began_s - request.arrived_s)
            if self._prefix_caching:
                values.add(PREFIX_CACHE_QUERIES, request.num_prompt_tokens)
                values.add(PREFIX_CACHE_HITS, request.num_cached)
        elapsed_s = ended_s - began_s
        self.step_s += (elapsed_s - self.step_s) * (_SMOOTHING if self.step_s else 1.0)
        values.observe(STEP_TIME, elapsed_s)
        values.observe(ITERATION_TOKENS, num_tokens)
        self._note_tokens([item.request for item in produced if not item.error], ended_s)
        for item in produced:
            if item.finish_reason is not None:
                self.note_ended(item.request, item.finish_reason, ended_s)

    def _note_tokens(self, requests: Sequence[Request], now_s: float) -> None:
        """Counts and times a token of each.

        Those of one step mostly follow those of one other: few intervals.
        """
        self.values.add(GENERATION_TOKENS, len(requests))
        num_after: dict[float, int] = {}
        for request in requests:
            last_s = request.token_s
            request.token_s = now_s
            if last_s:
                num_after[last_s] = num_after.get(last_s, 0) + 1
            else:
                self.values.add(PROMPT_TOKENS, request.num_prompt_tokens)
                self.values.observe(TIME_TO_FIRST_TOKEN, now_s - request.arrived_s)
        for last_s, count in num_after.items():
            self.values.observe(INTER_TOKEN_LATENCY, now_s - last_s, count)
