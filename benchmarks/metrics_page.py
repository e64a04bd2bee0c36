"""How long a front end takes to write `GET /metrics`, and how long it keeps its streams waiting.

    python benchmarks/metrics_page.py [--ranks 1000] [--pages 20]

Beside the page another task takes turns in the same event loop, as streams do; `longest_ms` is the
longest that it waited for one, the median of all pages and the worst. Prints one JSON object.
"""

import argparse
import asyncio
import json
import statistics
import time

import msgspec
import uvloop

from engine.config import Role
from engine.frontend.exposition import render
from engine.metrics import Metrics, MetricValue
from engine.protocol import Member, MetricsReport, Phase, ProcessState


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--pages", type=int, default=20)
    args = parser.parse_args()
    print(json.dumps(uvloop.run(measure(args.ranks, args.pages))))  # noqa: T201


async def measure(num_ranks: int, num_pages: int) -> dict[str, object]:
    reports = [_report(rank) for rank in range(num_ranks)]
    members = [_member(rank) for rank in range(num_ranks)]
    pauses_s: list[float] = []
    others = asyncio.create_task(_take_turns(pauses_s))
    await asyncio.sleep(0)
    page, took_s, longest_s = b"", [], []
    for _ in range(num_pages):
        pauses_s.clear()
        began_s = time.perf_counter()
        page = await render("benchmark", reports, members)
        took_s.append(time.perf_counter() - began_s)
        await asyncio.sleep(0)
        longest_s.append(max(pauses_s))
    others.cancel()
    return {
        "ranks": num_ranks,
        "page_mb": round(len(page) / 1e6, 2),
        "page_ms": round(1000 * statistics.median(took_s), 1),
        "longest_ms": [
            round(1000 * each, 1) for each in (statistics.median(longest_s), max(longest_s))
        ],
    }


async def _take_turns(pauses_s: list[float]) -> None:
    last_s = time.perf_counter()
    while True:
        await asyncio.sleep(0)
        now_s = time.perf_counter()
        pauses_s.append(now_s - last_s)
        last_s = now_s


def _report(rank: int) -> MetricsReport:
    """What a real engine core reports, with numbers of several digits."""
    values = [
        msgspec.structs.replace(each, value=1234.5678, counts=_counts(each))
        for each in Metrics(Role.engine).values()
    ]
    return MetricsReport(f"engine-{rank}", 1, Role.engine, rank, values)


def _counts(value: MetricValue) -> tuple[int, ...]:
    return tuple(range(1000, 1000 + len(value.counts)))


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


if __name__ == "__main__":
    main()
