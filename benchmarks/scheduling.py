"""What `profile.max_step_s` does to streams, by the real scheduler and a model of a step's time.

    PYTHONPATH=. python benchmarks/scheduling.py [--step-s 0.05,0.1,0.15,0.2,60] [--slow 1.0]

No model is computed and no time passes: a step takes what `step_s` says, which is near to what was
measured (docs/performance.md). So differences show that the noise of a shared machine hides.
Clients keep so many requests in flight, each of 128 tokens in and 64 out. Prints one line per load
and limit, times in milliseconds.
"""

import argparse
import heapq
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core.block_manager import BlockManager
from engine.core.request import Request, RequestKey
from engine.core.scheduler import Scheduled, Scheduler
from engine.core.step_budget import StepBudget
from engine.sampling import SamplingParams

LOADS = ((1, 8), (4, 24), (16, 64), (64, 64))
INPUT_LEN, OUTPUT_LEN = 128, 64
ROUND_TRIP_S = 0.003
"""From a request's last token to its client's next request."""
OVERHEAD_S, WEIGHTS_S = 0.0015, 0.0087
"""Of a step: what is not computing, and reading the weights once."""
PROMPT_TOKEN_S, DECODE_TOKEN_S = 0.00057, 0.00075
HIDDEN_SHARE = 0.7
"""How much of the shorter of reading and computing the longer one hides."""


def step_s(scheduled: Sequence[Scheduled]) -> float:
    """How long a step takes, about as on the machine of docs/performance.md."""
    num_decodes = sum(item.num_tokens == 1 for item in scheduled)
    num_prompt_tokens = sum(item.num_tokens for item in scheduled) - num_decodes
    computing_s = num_prompt_tokens * PROMPT_TOKEN_S + num_decodes * DECODE_TOKEN_S
    longer, shorter = max(computing_s, WEIGHTS_S), min(computing_s, WEIGHTS_S)
    return OVERHEAD_S + longer + shorter * (1 - HIDDEN_SHARE)


@dataclass
class Times:
    """When each request was sent and got its tokens."""

    sent_s: dict[int, float] = field(default_factory=dict)
    tokens_s: dict[int, list[float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        first = sorted(times[0] - self.sent_s[key] for key, times in self.tokens_s.items())
        gaps = sorted(
            later - earlier
            for times in self.tokens_s.values()
            for earlier, later in zip(times, times[1:], strict=False)
        )
        spans = [(times[-1] - times[0]) / (len(times) - 1) for times in self.tokens_s.values()]
        end_s = max(times[-1] for times in self.tokens_s.values())
        return {
            "tok/s": len(self.tokens_s) * OUTPUT_LEN / end_s,
            "TTFT p50": 1e3 * first[len(first) // 2],
            "p90": 1e3 * first[int(0.9 * len(first))],
            "TPOT": 1e3 * statistics.fmean(spans),
            "inter-token p99": 1e3 * gaps[int(0.99 * len(gaps))],
        }


def simulate(concurrency: int, num_requests: int, max_step_s: float, slow: float) -> Times:
    """The life of so many requests, `concurrency` of them at a time."""
    budget = StepBudget(2048, max_step_s)
    blocks = BlockManager(4096, 16, prefix_caching=True)
    scheduler = Scheduler(blocks, 128, budget, 2048, eos_token_ids=[])
    times, rng, now_s = Times(), random.Random(1), 0.0
    arrivals: list[tuple[float, int]] = []

    def send(when_s: float) -> None:
        number = len(times.sent_s)
        if number < num_requests:
            times.sent_s[number] = when_s
            heapq.heappush(arrivals, (when_s, number))

    for _ in range(concurrency):
        send(0.0)
    while arrivals or scheduler.num_requests:
        if not scheduler.num_requests:
            now_s = max(now_s, arrivals[0][0])
        while arrivals and arrivals[0][0] <= now_s:
            scheduler.add(_request(heapq.heappop(arrivals)[1], rng))
        scheduled = scheduler.schedule()
        elapsed_s = slow * step_s(scheduled)
        now_s += elapsed_s
        budget.note(sum(item.num_tokens for item in scheduled), len(scheduled), elapsed_s)
        num_wanted = sum(item.wants_token for item in scheduled)
        for produced in scheduler.postprocess(scheduled, [1] * num_wanted):
            times.tokens_s.setdefault(produced.request.key.request_id, []).append(now_s)
            if produced.finish_reason is not None:
                send(now_s + ROUND_TRIP_S)
    return times


def _request(number: int, rng: random.Random) -> Request:
    prompt = [rng.randrange(10_000) for _ in range(INPUT_LEN)]
    sampling = SamplingParams(OUTPUT_LEN, temperature=0.0, ignore_eos=True)
    return Request(RequestKey("benchmark", number), prompt, INPUT_LEN, sampling)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step-s", default="0.05,0.1,0.15,0.2,60", help="limits, by commas")
    parser.add_argument("--slow", type=float, default=1.0, help="each step takes so many times")
    args = parser.parse_args()
    for concurrency, num_requests in LOADS:
        for max_step_s in map(float, args.step_s.split(",")):
            figures = simulate(concurrency, num_requests, max_step_s, args.slow).figures()
            shown = "  ".join(f"{name} {value:.0f}" for name, value in figures.items())
            print(f"{concurrency} at a time, {max_step_s:g} s a step: {shown}")  # noqa: T201


if __name__ == "__main__":
    main()
