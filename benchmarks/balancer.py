"""How long the load balancer takes to choose a rank, and to take over a snapshot of all loads.

    python benchmarks/balancer.py [--ranks 1000] [--requests 16]

Every rank has so many requests of this front end in flight, with work at random. Prints one JSON
object per policy, for ranks that differ and for equal ones; microseconds, the best of seven rounds.
"""

import argparse
import json
import random
import timeit

from engine.config import BalancerPolicy, Role
from engine.frontend import load_balancer
from engine.frontend.in_flight import InFlight
from engine.metrics import Metrics
from engine.protocol import AddRequest, Loads, Member, Phase, ProcessState, RankLoad
from engine.sampling import SamplingParams

ROUNDS, REPEATS = 7, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=16, help="in flight at each rank")
    args = parser.parse_args()
    rng = random.Random(0)
    for case in ("different", "equal"):
        in_flight = _busy(args.ranks, args.requests, rng if case == "different" else None)
        for policy in BalancerPolicy:
            us = _best_us(lambda policy=policy, here=in_flight: _choose(policy, here))
            _print(ranks=args.ranks, loads=case, policy=policy.value, us_per_choice=us)
    loads = Loads(1, [_load(rank, rng) for rank in range(args.ranks)])
    in_flight = _busy(args.ranks, args.requests, rng)
    us = _best_us(lambda: in_flight.apply_loads(loads, now_s=100.0))
    _print(ranks=args.ranks, us_per_snapshot=us)


def _choose(policy: BalancerPolicy, in_flight: InFlight) -> None:
    number = random.getrandbits(64)
    load_balancer.choose(policy, in_flight.candidates(), last=7, number=number)


def _busy(num_ranks: int, num_requests: int, rng: random.Random | None) -> InFlight:
    """Ranks with requests in flight, and reports from before the last of them."""
    in_flight = InFlight(Metrics(Role.frontend))
    in_flight.apply([_member(rank) for rank in range(num_ranks)])
    for engine in in_flight.engines.values():
        in_flight.set_reachable(engine, is_reachable=True, is_full=False)
        engine.is_connected = True
        for index in range(num_requests):
            length = rng.randrange(1, 1000) if rng else 500
            request = AddRequest(index, index, [0] * length, SamplingParams(max_tokens=100))
            in_flight.add(engine, request, lambda generation: None, now_s=float(index))
    loads = [_load(rank, rng) for rank in range(num_ranks)]
    in_flight.apply_loads(Loads(1, loads), now_s=num_requests - 1.5)
    return in_flight


def _member(rank: int) -> Member:
    return Member(
        name=f"engine-{rank}",
        role=Role.engine,
        rank=rank,
        incarnation=1,
        node="head",
        pid=1,
        devices=[],
        state=ProcessState.ready,
        phase=Phase.ready,
        since_s=0.0,
    )


def _load(rank: int, rng: random.Random | None) -> RankLoad:
    waiting_tokens = rng.randrange(20_000) if rng else 10_000
    return RankLoad(rank, 1, 4, 16, waiting_tokens, 1000, 0.5, step_s=0.01)


def _best_us(call: object) -> float:
    seconds = timeit.repeat(call, number=REPEATS, repeat=ROUNDS)  # type: ignore[arg-type]
    return round(min(seconds) / REPEATS * 1e6, 1)


def _print(**figures: object) -> None:
    print(json.dumps(figures), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
