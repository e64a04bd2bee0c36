"""Which rank gets the next request: a function of reported loads and what is in flight here.

What a rank has to do is never guessed: it is what the rank last reported plus what this front end
has sent it since, and at least what this front end has in flight there. Without a report, or with
the coordinator gone, the own requests alone decide; they spread a burst evenly by themselves.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from engine.config import BalancerPolicy
from engine.protocol import OUTPUT_HORIZON


class Reason(Enum):
    """Why a rank was chosen."""

    pinned = "pinned"
    """The client named it."""
    only = "only"
    """No other takes requests."""
    least_loaded = "least_loaded"
    """It has less work than all others, or than the other of two."""
    tie = "tie"
    """Others have as little work."""
    turn = "turn"
    """It was next."""


class Decision(NamedTuple):
    rank: int
    reason: Reason


@dataclass(slots=True)
class RankWork:
    """Tokens that a rank has to compute, as far as a front end knows."""

    rank: int
    own: int = 0
    """Of this front end's requests in flight."""
    reported: int = 0
    """Of all requests, as the rank last reported."""
    unreported: int = 0
    """The part of `own` that was sent since that report."""

    @property
    def estimate(self) -> int:
        return max(self.own, self.reported + self.unreported)


def choose(
    policy: BalancerPolicy, candidates: Sequence[RankWork], last: int, number: int
) -> Decision:
    """The rank that gets the next request.

    Args:
        candidates: Ranks that take requests, in ascending order; not empty.
        last: Rank chosen the time before, or any number.
        number: At random, 0 or more; only `power_of_two` looks at it.
    """
    if len(candidates) == 1:
        return Decision(candidates[0].rank, Reason.only)
    match policy:
        case BalancerPolicy.least_loaded:
            return _least_loaded(candidates, last)
        case BalancerPolicy.round_robin:
            return Decision(candidates[_next_index(candidates, last)].rank, Reason.turn)
        case BalancerPolicy.power_of_two:
            return _power_of_two(candidates, number)
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


def _least_loaded(candidates: Sequence[RankWork], last: int) -> Decision:
    """The rank with the least work; equal ones take turns: the next after `last`."""
    # `estimate` written out: a call for each of a thousand ranks takes longer than all the rest.
    work = [
        each.own if each.own > each.reported + each.unreported else each.reported + each.unreported
        for each in candidates
    ]
    least = min(work)
    if work.count(least) == 1:
        return Decision(candidates[work.index(least)].rank, Reason.least_loaded)
    start = _next_index(candidates, last)
    try:
        index = work.index(least, start)
    except ValueError:
        index = work.index(least)
    return Decision(candidates[index].rank, Reason.tie)


def _power_of_two(candidates: Sequence[RankWork], number: int) -> Decision:
    """The less loaded of two different ranks that the number picks."""
    rest, first = divmod(number, len(candidates))
    second = (first + 1 + rest % (len(candidates) - 1)) % len(candidates)
    one, other = candidates[first], candidates[second]
    if one.estimate == other.estimate:
        return Decision(one.rank, Reason.tie)
    return Decision(min(one, other, key=lambda each: each.estimate).rank, Reason.least_loaded)


def _next_index(candidates: Sequence[RankWork], last: int) -> int:
    """Index of the first rank after `last`, beginning again behind the highest."""
    return bisect_right(candidates, last, key=lambda each: each.rank) % len(candidates)
