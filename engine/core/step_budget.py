"""How many tokens a step takes, so that it is over in time. Pure: times are arguments."""

FIRST_TOKENS = 256
"""Of a step before anything was measured."""
MIN_PROMPT_TOKENS = 128
"""Of prompts in a step, however long it takes: with fewer the cores wait for the weights, and all
prompts together take longer. Source: benchmarks/scheduling.py --slow 3; with 64 there would be 4 %
fewer tokens a second, and first tokens would come a sixth later."""
PROMPT_TOKENS_PER_DECODE = 2
"""In a step at least: else prompts would hardly move beside many streams."""
_SMOOTHING = 0.2
"""Weight of the newest step: one that was held up by other processes is soon forgotten."""


class StepBudget:
    """Decodes always have their place; prompts get what is left of the step's time.

    So a running stream waits no longer than that for its next token, and prompts are finished one
    after the other, not all at the end of one long step: on average they wait for half as long.

    Args:
        max_tokens: Never more in one step.
        max_step_s: What a step with prompts should take.
    """

    def __init__(self, max_tokens: int, max_step_s: float) -> None:
        self.max_tokens = max_tokens
        self._max_step_s = max_step_s
        self._token_s: float | None = None

    def num_prompt_tokens(self, num_decodes: int) -> int:
        """Tokens of prompts beside so many decodes."""
        least = max(MIN_PROMPT_TOKENS, PROMPT_TOKENS_PER_DECODE * num_decodes)
        wanted = max(self._num_in_time() - num_decodes, least)
        return max(0, min(wanted, self.max_tokens - num_decodes))

    def note(self, num_tokens: int, num_requests: int, step_s: float) -> None:
        """Takes what a step was and how long it took. Those with few prompts tell nothing."""
        if num_tokens - num_requests < MIN_PROMPT_TOKENS // 2:
            return
        token_s = step_s / num_tokens
        if self._token_s is None:
            self._token_s = token_s
        self._token_s += (token_s - self._token_s) * _SMOOTHING

    def _num_in_time(self) -> int:
        if self._token_s is None:
            return FIRST_TOKENS
        if self._token_s * self.max_tokens <= self._max_step_s:
            return self.max_tokens
        return int(self._max_step_s / self._token_s)
