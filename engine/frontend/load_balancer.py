"""Which rank gets the next request: a function of what the front end itself has in flight."""

from collections.abc import Mapping
from typing import assert_never

from engine.config import BalancerPolicy

OUTPUT_HORIZON = 256
"""Output tokens of one request that count as work. `max_tokens` is a limit that few requests reach
and that clients often leave at the whole context: without a cap one such request would outweigh a
hundred others that will run as long.
"""


def choose(policy: BalancerPolicy, work: Mapping[int, int], last: int) -> int:
    """The rank that gets the next request.

    Args:
        work: `work_of` all requests in flight, per rank that takes new ones; not empty.
        last: Rank chosen the time before, or any number.
    """
    match policy:
        case BalancerPolicy.least_loaded:
            return _least_loaded(work, last)
        case _ as never:
            assert_never(never)


def work_of(num_prompt_tokens: int, num_output_tokens: int, max_tokens: int) -> int:
    """Tokens that a rank still has to compute for a request, as far as can be known.

    The prompt counts until the first output shows that it has been computed; what the prefix cache
    may hold is not guessed at. Each output token takes one place in one step, and at most
    `OUTPUT_HORIZON` of them count. So a long prompt weighs as much as several running requests
    until it is through, and nothing after that.
    """
    ahead = min(max_tokens - num_output_tokens, OUTPUT_HORIZON)
    return ahead if num_output_tokens else num_prompt_tokens + ahead


def _least_loaded(work: Mapping[int, int], last: int) -> int:
    """The rank with the least work; equal ones take turns: the next after `last`."""
    cycle = max(max(work), last) + 1
    return min(work, key=lambda rank: (work[rank], (rank - last - 1) % cycle))
