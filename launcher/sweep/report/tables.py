"""A sweep as text: `sweep.csv`, and what the terminal shows."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from launcher.bench.results import StageResult
from launcher.show import UNBOUNDED_WIDTH
from launcher.sweep.best import Best
from launcher.sweep.metrics import METRICS, Metric
from launcher.sweep.rows import Outcome, Row
from launcher.sweep.variants import Point, Variant, named_stages

_SHOWN = (
    ("output_tok_s", "out tok/s"),
    ("req_s", "req/s"),
    ("goodput_req_s", "goodput req/s"),
    ("ttft_ms.p50", "TTFT p50 ms"),
    ("tpot_ms.p50", "TPOT p50 ms"),
    ("e2e_ms.p50", "e2e p50 ms"),
)
"""Of a variant on the terminal."""


def as_csv(variants: Sequence[Variant]) -> str:
    """A line for each job, a column for each figure.

    Where jobs have several stages, the columns of each begin with its name.
    """
    jobs = [(variant, row) for variant in variants for row in variant.rows]
    stages = [dict(named_stages(row.results.stages)) if row.results else {} for _, row in jobs]
    are_single = all(len(each) <= 1 for each in stages)
    names = [None] if are_single else list(dict.fromkeys(name for each in stages for name in each))
    keys = list(dict.fromkeys(key for variant in variants for key in variant.swept))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    prefixes = ["" if name is None else f"{name}: " for name in names]
    writer.writerow(
        [*("variant", "repetition"), *keys, *("outcome", "exit_code", "seconds", "said")]
        + ["directory", "plan_digest", "ready_s", *(["stage"] if are_single else [])]
        + [prefix + key for prefix in prefixes for key in METRICS]
    )
    for (variant, row), of in zip(jobs, stages, strict=True):
        first = next(iter(of), "")
        figures = [_figures(of.get(first if name is None else name)) for name in names]
        writer.writerow(
            [variant.number, row.repetition, *(row.swept.get(key, "") for key in keys)]
            + [row.outcome.value, row.exit_code, row.seconds, row.said, row.directory]
            + [*_of_results(row), *([first] if are_single else [])]
            + [figure for each in figures for figure in each]
        )
    return written.getvalue()


def terminal_lines(variants: Sequence[Variant], best: Best | None, page: Path) -> list[str]:
    """A table with a line for each variant, and which one is best."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    table = _table(variants, best)
    unbounded = console.options.update(max_width=UNBOUNDED_WIDTH)
    least = console.measure(table, options=unbounded).minimum
    # A narrower terminal breaks lines, no figure is lost.
    console.width = max(console.width, least) if console.is_terminal else UNBOUNDED_WIDTH
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return [*lines, *_best_lines(best), f"report: {page}"]


def shown(value: float) -> str:
    """With three digits or more."""
    num_decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:.{num_decimals}f}"


def outcome_of(variant: Variant) -> str:
    """`valid`, `2 of 3 valid`, `crashed`, `1 crashed, 2 timed out`."""
    outcomes = Counter(row.outcome for row in variant.rows)
    num_valid, num = outcomes[Outcome.valid], len(variant.rows)
    if num_valid == num:
        return "valid" if num == 1 else f"{num} valid"
    if num_valid:
        return f"{num_valid} of {num} valid"
    names = {outcome: outcome.value.replace("_", " ") for outcome in outcomes}
    if len(names) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{number} {names[outcome]}" for outcome, number in outcomes.items() if number)


def why_not(variant: Variant) -> str:
    """What the first of its jobs that are not valid has said."""
    return next(
        (printable(row.said) for row in variant.rows if row.outcome is not Outcome.valid), ""
    )


def printable(text: str) -> str:
    """Without what would control a terminal, or is no text."""
    return "".join(each if each.isprintable() else "�" for each in text)


def at_best_stage(variant: Variant, metric: Metric) -> Point | None:
    """None: it has no valid results."""
    return max(variant.points(), key=lambda point: point.median(metric) or 0.0, default=None)


def _table(variants: Sequence[Variant], best: Best | None) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    keys = list(dict.fromkeys(key for variant in variants for key in variant.swept))
    metric = best.metric if best is not None else METRICS["output_tok_s"]
    points = {variant.number: at_best_stage(variant, metric) for variant in variants}
    columns = [
        (METRICS[key], heading)
        for key, heading in _SHOWN
        if any(it is not None and it.median(METRICS[key]) is not None for it in points.values())
    ]
    table.add_column("", justify="right", no_wrap=True)
    for key in (*keys, "jobs", *(["stage"] if columns else [])):
        table.add_column(key, no_wrap=True)
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for variant in variants:
        point = points[variant.number]
        is_best = best is not None and best.point.variant is variant
        table.add_row(
            str(variant.number),
            *(variant.swept.get(key, "") for key in keys),
            outcome_of(variant),
            *([point.stage if point else ""] if columns else []),
            *(_spread(point, each) if point else "" for each, _ in columns),
            "best" if is_best else why_not(variant),
        )
    for column in table.columns[:-1]:  # rich would cut figures short on a narrow terminal
        column.min_width = max(cell_len(str(text)) for text in (column.header, *column.cells))
    return table


def _spread(point: Point, metric: Metric) -> str:
    """`12.5 ±3%`: the median, and how far from it the farthest of the repetitions is."""
    spread = point.spread(metric)
    if spread is None:
        return ""
    if spread.num == 1 or not spread.median:
        return shown(spread.median)
    farthest = max(spread.high - spread.median, spread.median - spread.low)
    return f"{shown(spread.median)} ±{farthest / spread.median:.0%}"


def _best_lines(best: Best | None) -> Iterator[str]:
    if best is None:
        yield "best: none, no variant has valid results"
        return
    variant = best.point.variant
    name = f" ({variant.name})" if variant.name else ""
    yield f"best: variant {variant.number}{name} at {best.point.stage}: {best.why}"
    yield from (f"    {line}" for line in best.hints)
    if best.command is not None:
        yield f"serve it: {best.command}"


def _of_results(row: Row) -> tuple[str | None, float | None]:
    results = row.results
    if results is None:
        return None, None
    return results.plan_digest, results.start_up.ready_s if results.start_up else None


def _figures(stage: StageResult | None) -> list[float | None]:
    return [None if stage is None else metric.of(stage) for metric in METRICS.values()]
