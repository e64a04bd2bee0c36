"""What is asked of the server, and when: a function of options and seed alone.

Prompts are recipes (`Piece`), from which `launcher.bench.content` makes the same tokens in
whichever client process sends them: a trace of millions of tokens need not be held or handed on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from launcher.bench.messages import Piece, Session, Turn
from launcher.bench.options import BenchOptions, Distribution, LengthOptions
from launcher.bench.trace import Entry

_LEAST_SESSIONS = 16
_SESSIONS_PER_CONCURRENT = 4
_ARRIVALS_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Sessions that are measured together."""

    name: str
    """`concurrency 4`, `rate 2/s`, `trace`."""
    sessions: Sequence[Session]
    concurrency: int | None = None
    rate: float | None = None
    """Sessions a second."""

    @property
    def num_requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)

    @property
    def longest(self) -> int:
        """Tokens of the longest session, prompts and answers."""
        return max(
            sum(turn.num_tokens + turn.max_tokens for turn in session.turns)
            for session in self.sessions
        )


def make_stages(options: BenchOptions, trace: Sequence[Entry] = ()) -> list[Stage]:
    """The stages in the order in which they run.

    Args:
        trace: What `bench.trace.path` holds; not empty: it is the one stage.
    """
    if trace:
        sessions = [
            _replayed(options, entry, trace[0].timestamp, i) for i, entry in enumerate(trace)
        ]
        return [Stage(name="trace", sessions=sessions)]
    if options.rate:
        return [_arriving(options, rate, index) for index, rate in enumerate(options.rate)]
    return [_concurrent(options, most, index) for index, most in enumerate(options.concurrency)]


def make_warm_up(options: BenchOptions, trace: Sequence[Entry] = ()) -> Stage | None:
    """Sessions like the others, none of which comes again."""
    number = options.warm_up_sessions
    if not number:
        return None
    if trace:
        lengths = [_lengths(options, entry) for entry in trace[:number]]
        sessions = [
            Session([_turn(f"{options.seed}/warm-up/{index}", [], *each)])
            for index, each in enumerate(lengths)
        ]
    else:
        sessions = list(_sessions(options, "warm-up", number))
    most = max(options.concurrency, default=number)
    return Stage(name="warm-up", sessions=sessions, concurrency=min(number, most))


def draw(length: LengthOptions, random: Random) -> int:
    """A number of tokens."""
    match length.kind:
        case Distribution.fixed:
            return length.mean
        case Distribution.uniform:
            return random.randint(length.min, length.max or length.min)
        case Distribution.exponential:
            number = random.expovariate(1 / length.mean)
        case Distribution.lognormal:
            # Source: mean and variance of exp(N(mu, sigma^2)), solved for mu and sigma.
            stdev = length.mean / 2 if length.stdev is None else length.stdev
            variance = math.log1p((stdev / length.mean) ** 2)
            number = random.lognormvariate(
                math.log(length.mean) - variance / 2, math.sqrt(variance)
            )
    most = math.inf if length.max is None else length.max
    return int(min(max(round(number), length.min), most))


def _concurrent(options: BenchOptions, concurrency: int, index: int) -> Stage:
    number = options.num_sessions
    if number is None:
        number = max(_LEAST_SESSIONS, _SESSIONS_PER_CONCURRENT * concurrency)
    sessions = list(_sessions(options, f"concurrency-{index}", number))
    return Stage(name=f"concurrency {concurrency}", sessions=sessions, concurrency=concurrency)


def _arriving(options: BenchOptions, rate: float, index: int) -> Stage:
    number = options.num_sessions
    if number is None:
        number = max(_LEAST_SESSIONS, math.ceil(_ARRIVALS_S * rate))
    stage = f"rate-{index}"
    random = Random(f"{options.seed}/{stage}/arrivals")
    # As many as the rate says, or short stages would be of other rates than their names. Source:
    # given their number, the arrivals of a Poisson process are independent and uniform.
    last_s = (number - 1) / rate
    starts = [0.0, *sorted(random.uniform(0.0, last_s) for _ in range(number - 1))]
    sessions = [
        Session(session.turns, start_s)
        for session, start_s in zip(_sessions(options, stage, number), starts, strict=True)
    ]
    return Stage(name=f"rate {rate:g}/s", sessions=sessions, rate=rate)


def _sessions(options: BenchOptions, stage: str, number: int) -> Iterator[Session]:
    """Lengths of one stage do not depend on how many sessions the others have."""
    seed, prefix = options.seed, options.shared_prefix
    random = Random(f"{seed}/{stage}/lengths")
    for index in range(number):
        shared = []
        group = random.randrange(prefix.groups)
        if prefix.tokens:
            # Each stage has prefixes of its own: none finds the cache of the one before.
            shared = [Piece(f"{seed}/{stage}/prefix/{group}", prefix.tokens)]
        turns = []
        for turn in range(options.turns):
            num_input, num_output = draw(options.input, random), draw(options.output, random)
            own = f"{seed}/{stage}/{index}/{turn}"
            turns.append(_turn(own, [] if turn else shared, num_input, num_output))
        yield Session(turns)


def _turn(key: str, before: list[Piece], num_input: int, num_output: int) -> Turn:
    return Turn([*before, Piece(key, num_input)], num_output)


def _replayed(options: BenchOptions, entry: Entry, first_ms: float, index: int) -> Session:
    """A request of a trace, each of its blocks made from its hash."""
    trace, seed = options.trace, options.seed
    num_left, num_output = _lengths(options, entry)
    block_size = max(1, round(trace.block_size * trace.scale))
    pieces = []
    for block in entry.hash_ids:
        pieces.append(Piece(f"{seed}/block/{block}", min(block_size, num_left)))
        num_left -= pieces[-1].num_tokens
        if not num_left:
            break
    if num_left:  # beyond its hashes: its own
        pieces.append(Piece(f"{seed}/trace/{index}", num_left))
    start_s = (entry.timestamp - first_ms) / 1e3 / trace.speed
    return Session([Turn(pieces, num_output)], start_s)


def _lengths(options: BenchOptions, entry: Entry) -> tuple[int, int]:
    """Tokens of the prompt and of the answer."""
    scale = options.trace.scale
    return max(1, round(entry.input_length * scale)), max(1, round(entry.output_length * scale))
