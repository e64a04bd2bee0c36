"""`report.html`: all of a sweep in one file that needs no other."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2

from engine.wording import counted
from launcher.sweep.best import SLO_HINT, Best
from launcher.sweep.metrics import METRICS
from launcher.sweep.pareto import pareto_front
from launcher.sweep.report.plots import LATENCIES, MAX_AXES, Plot
from launcher.sweep.report.series import Grid
from launcher.sweep.report.tables import outcome_of, shown, why_not
from launcher.sweep.rows import Outcome, Row, Sweep
from launcher.sweep.variants import Point, Variant

_THROUGHPUT = (
    ("output_tok_s", "output", "tok/s"),
    ("req_s", "requests", "req/s"),
    ("goodput_req_s", "goodput", "req/s"),
    ("ttft_ms.p50", "TTFT p50", "ms"),
    ("ttft_ms.p99", "TTFT p99", "ms"),
    ("tpot_ms.p50", "TPOT p50", "ms"),
    ("tpot_ms.p99", "TPOT p99", "ms"),
    ("e2e_ms.p50", "e2e p50", "ms"),
)
_OTHERS = (
    ("itl_ms.p50", "ITL p50", "ms"),
    ("itl_ms.p99", "ITL p99", "ms"),
    ("e2e_ms.p99", "e2e p99", "ms"),
    ("prefix_hit_rate", "prefix hits", ""),
    ("rank_skew", "rank skew", ""),
    ("pss_mib", "PSS", "MiB"),
    ("cpus", "CPUs", ""),
)
_MAX_LINES = 1000
"""Of a table; `sweep.csv` has all."""
_MAX_FRONT = 40
_MAX_WARNINGS = 30
_GIB = 2**30


class Cell(NamedTuple):
    median: str
    range: str
    """Empty: it was measured once."""


class Line(NamedTuple):
    """Of the table of the variants: one in one stage, or one without valid results."""

    number: int
    swept: list[str]
    jobs: str
    stage: str
    cells: list[Cell]
    why: str
    """Empty: all its jobs are valid."""
    is_best: bool


class Figures(NamedTuple):
    """A table of the variants."""

    title: str
    columns: list[tuple[str, str, str]]
    """Metric, heading and unit."""
    lines: list[Line]
    num_left_out: int


class FrontLine(NamedTuple):
    number: int
    name: str
    stage: str
    output: str
    times: list[str]
    fronts: str
    """Of the latencies against which nothing beats it."""


def as_page(
    sweep: Sweep,
    variants: Sequence[Variant],
    best: Best | None,
    plots: Sequence[tuple[Plot, str]],
) -> str:
    """The page, with plots and the URLs that hold them."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"counted": counted, "url": quote}
    template = resources.files(__package__).joinpath("report.html.jinja").read_text()
    points = [point for variant in variants for point in variant.points()]
    return environment.from_string(template).render(_content(sweep, variants, points, best, plots))


def _content(
    sweep: Sweep,
    variants: Sequence[Variant],
    points: Sequence[Point],
    best: Best | None,
    plots: Sequence[tuple[Plot, str]],
) -> dict[str, Any]:
    keys = _swept_keys(variants)
    failed = [
        (variant, row)
        for variant in variants
        for row in variant.rows
        if row.outcome is not Outcome.valid
    ]
    left_out = [axis.key for axis in Grid(points).axes[:-MAX_AXES]]
    warnings = Counter(
        line for variant in variants for results in variant.results for line in results.warnings
    )
    valid = [variant for variant in variants if variant.results]
    return {
        "title": f"Sweep of {', '.join(keys)}" if keys else "Sweep",
        "sweep": sweep,
        "typed": shlex.join(["python", "-m", "launcher", "-m", *sweep.overrides]),
        "outcomes": _outcomes(sweep.rows),
        "num_variants": len(variants),
        "slo": _slo(sweep),
        "slo_hint": SLO_HINT,
        "best": best,
        "keys": keys,
        "tables": [
            _figures("Throughput and times", _THROUGHPUT, variants, best),
            _figures("Tails, cache, ranks and processes", _OTHERS, valid, best),
        ],
        "is_measured": bool(points),
        "has_ranges": any(len(point.measured) > 1 for point in points),
        "failed": failed[:_MAX_LINES],
        "plots": plots,
        "left_out": left_out,
        "front": _front(points),
        "latencies": [METRICS[key] for key in LATENCIES],
        "warnings": warnings.most_common(_MAX_WARNINGS),
        "variants": variants[:_MAX_LINES],
        "memory_gib": f"{sweep.environment.memory_bytes / _GIB:.0f}",
    }


def _figures(
    title: str,
    columns: Sequence[tuple[str, str, str]],
    variants: Sequence[Variant],
    best: Best | None,
) -> Figures:
    """With the columns of which something was measured."""
    points = [point for variant in variants for point in variant.points()]
    known = [
        column
        for column in columns
        if any(point.median(METRICS[column[0]]) is not None for point in points)
    ]
    lines = list(_lines(variants, [key for key, *_ in known], best))
    return Figures(title, known, lines[:_MAX_LINES], max(0, len(lines) - _MAX_LINES))


def _lines(
    variants: Sequence[Variant], metrics: Sequence[str], best: Best | None
) -> Iterator[Line]:
    keys = _swept_keys(variants)
    for variant in variants:
        swept = [variant.swept.get(key, "") for key in keys]
        of, jobs, why = list(variant.points()), outcome_of(variant), why_not(variant)
        for point in of:
            cells = [_cell(point, key) for key in metrics]
            is_best = best is not None and point == best.point
            yield Line(variant.number, swept, jobs, point.stage, cells, why, is_best)
        if not of:
            yield Line(variant.number, swept, jobs, "", [], why, False)


def _swept_keys(variants: Sequence[Variant]) -> list[str]:
    return list(dict.fromkeys(key for variant in variants for key in variant.swept))


def _cell(point: Point, key: str) -> Cell:
    spread = point.spread(METRICS[key])
    if spread is None:
        return Cell("", "")
    several = spread.num > 1
    return Cell(
        shown(spread.median), f"{shown(spread.low)}–{shown(spread.high)}" if several else ""
    )


def _front(points: Sequence[Point]) -> list[FrontLine]:
    """The points on any of the Pareto fronts, most output last."""
    output = METRICS["output_tok_s"]
    fronts: dict[int, list[str]] = {}
    for key in LATENCIES:
        metric = METRICS[key]
        known = [
            (place, (x, point.median(output) or 0.0))
            for place, point in enumerate(points)
            if (x := point.median(metric)) is not None
        ]
        for i in pareto_front([each for _, each in known]):
            fronts.setdefault(known[i][0], []).append(metric.title.removesuffix(" p50"))
    places = sorted(fronts, key=lambda place: points[place].median(output) or 0.0)
    return [
        FrontLine(
            (point := points[place]).variant.number,
            point.variant.name,
            point.stage,
            _cell(point, "output_tok_s").median,
            [_cell(point, key).median for key in LATENCIES],
            ", ".join(fronts[place]),
        )
        for place in places[-_MAX_FRONT:]
    ]


def _outcomes(rows: Sequence[Row]) -> str:
    """`4 jobs: 3 valid, 1 crashed`."""
    numbers = Counter(row.outcome for row in rows)
    of = [
        f"{numbers[outcome]} {outcome.value.replace('_', ' ')}"
        for outcome in Outcome
        if numbers[outcome]
    ]
    return f"{counted(len(rows), 'job')}: {', '.join(of)}" if rows else "no jobs"


def _slo(sweep: Sweep) -> str:
    """`TTFT at most 500 ms, TPOT at most 50 ms`; empty: there is none."""
    limits = {key: limit for key, limit in sweep.slo.items() if limit is not None}
    return ", ".join(
        f"{key.removesuffix('_ms').upper()} at most {limit:g} ms" for key, limit in limits.items()
    )
