"""The figures of a stage by name, as reports and comparisons read them."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from launcher.bench.results import StageResult, Summary

TIMES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "itl_ms": "inter-token",
    "e2e_ms": "end to end",
}
STATISTICS = ("mean", "p50", "p90", "p99", "max")
_MIB = 2**20


class Better(Enum):
    """Which of two values is the better one."""

    higher = "higher"
    lower = "lower"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a stage."""

    key: str
    """As in `results.json`: `output_tok_s`, `ttft_ms.p50`."""
    title: str
    unit: str
    """Empty: it has none."""
    better: Better
    of: Callable[[StageResult], float | None]
    """None: it was not measured."""

    @property
    def label(self) -> str:
        """For an axis or a heading."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


def _plain(key: str, title: str, unit: str, better: Better) -> Metric:
    return Metric(key, title, unit, better, lambda stage: getattr(stage, key))


def _time(key: str, statistic: str) -> Metric:
    def of(stage: StageResult) -> float | None:
        summary: Summary | None = getattr(stage, key)
        return None if summary is None else getattr(summary, statistic)

    return Metric(f"{key}.{statistic}", f"{TIMES[key]} {statistic}", "ms", Better.lower, of)


def _memory(stage: StageResult) -> float | None:
    of = [each.pss_bytes for each in stage.processes]
    # A process has some: 0 is of somebody else's, which may not be looked at.
    return sum(of) / _MIB if of and all(of) else None


def _cpu(stage: StageResult) -> float | None:
    return sum(each.cpu_share for each in stage.processes) if stage.processes else None


METRICS = {
    metric.key: metric
    for metric in (
        _plain("output_tok_s", "output", "tok/s", Better.higher),
        _plain("total_tok_s", "prompt and output", "tok/s", Better.higher),
        _plain("req_s", "requests", "req/s", Better.higher),
        _plain("goodput_req_s", "goodput", "req/s", Better.higher),
        *(_time(key, statistic) for key in TIMES for statistic in STATISTICS),
        _plain("prefix_hit_rate", "prefix hit rate", "", Better.higher),
        _plain("rank_skew", "rank skew", "", Better.lower),
        Metric("pss_mib", "PSS of all processes", "MiB", Better.lower, _memory),
        Metric("cpus", "CPUs of all processes", "", Better.lower, _cpu),
    )
}
"""By key."""
