"""The plots of a report: which there are, and what they show."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from engine.wording import counted
from launcher.sweep.best import Best
from launcher.sweep.metrics import METRICS, STATISTICS, TIMES
from launcher.sweep.report.panels import (
    MAX_SERIES,
    THROUGHPUT,
    draw_along,
    draw_frontier,
    draw_ranks,
    draw_ticks,
    shortened,
)
from launcher.sweep.report.series import Axis, Grid, Series
from launcher.sweep.report.style import BEST, COLOURS, INK, MARKERS, PAPER
from launcher.sweep.variants import Point

LATENCIES = ("ttft_ms.p50", "tpot_ms.p50", "e2e_ms.p50")
"""That throughput is drawn against."""
_RATES = tuple(key for key in METRICS if "." not in key)
_TIMES = tuple(f"{time}.{each}" for time in TIMES for each in STATISTICS if each != "max")
"""A row for each time."""
MAX_AXES = 8
"""Keys that plots are drawn against: a report of more would be too large."""
MAX_RANK_PANELS = 12
_MAX_NAME = 100
"""Characters of a line of a legend."""
_COLUMNS = 4
_WIDTH, _PANEL_HEIGHT, _LEGEND_LINE = 11.0, 1.95, 0.2
"""Inches."""
_PANEL_POINTS = 150.0
"""Width of the inside of a panel."""


@dataclass(frozen=True, slots=True)
class Plot:
    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    alternative: str
    """What is to be seen, for those who do not see it."""
    figure: Figure


def plots_of(points: Sequence[Point], best: Best | None) -> Iterator[Plot]:
    """All that there is something to show in, one after the other; within `style()`."""
    if not points:
        return
    yield _frontier(points, best)
    grid = Grid(points)
    names: set[str] = set()
    for axis in grid.axes[-MAX_AXES:]:
        name = "by-" + re.sub(r"[^A-Za-z0-9._-]+", "-", axis.key).strip("-.")
        while name in names:
            name += "-2"
        names.add(name)
        lines = grid.series(axis)
        for kind, title, keys in (
            ("rates", "Rates and resources", _RATES),
            ("times", "Times", _TIMES),
        ):
            plot = _along(f"{name}-{kind}", title, axis, lines, keys)
            if plot is not None:
                yield plot
    yield from _ranks(points)


def _frontier(points: Sequence[Point], best: Best | None) -> Plot:
    costs = [METRICS[key] for key in LATENCIES]
    costs = [cost for cost in costs if any(point.median(cost) is not None for point in points)]
    variants = list({point.variant.number: point.variant for point in points}.values())
    names = [shortened(variant.title, _MAX_NAME) for variant in variants]
    are_many = len(variants) > MAX_SERIES
    lines = (
        [Line2D([], [], linestyle="", marker=".", color=COLOURS[0], label="variant and stage")]
        if are_many
        else _legend_lines(names)
    )
    lines += [
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 2)), marker="o", markersize=9,
               markerfacecolor="none", label="Pareto front"),
    ]  # fmt: skip
    if best is not None:
        lines.append(
            Line2D([], [], linestyle="", marker="*", markersize=11, color=BEST, label="best",
                   markeredgecolor=PAPER)
        )  # fmt: skip
    num_lines = _num_legend_lines(lines)
    figure = Figure((_WIDTH, 3.6 + num_lines * _LEGEND_LINE), layout="constrained")
    panels = figure.subplots(1, max(1, len(costs)), sharey=True, squeeze=False)[0]
    for panel, cost in zip(panels, costs, strict=False):
        draw_frontier(panel, points, cost, best.point if best is not None else None)
    panels[0].set_ylabel(THROUGHPUT.label)
    _add_legend(figure, lines)
    numbers = " The numbers are those of the variants." if are_many else ""
    return Plot(
        "throughput-latency",
        "Throughput against latency",
        "Up and to the left is better. A ring marks what no other point beats in both respects:"
        f" the Pareto front of each panel.{numbers}",
        f"{counted(len(costs), 'panel')} of output in tokens per second against the medians of"
        f" {', '.join(cost.title.removesuffix(' p50') for cost in costs)}, with the Pareto front;"
        f" {counted(len(points), 'point')} of {counted(len(variants), 'variant')}. The table after"
        " it lists the points of the front.",
        figure,
    )


def _along(
    name: str, title: str, axis: Axis, lines: Sequence[Series], keys: Sequence[str]
) -> Plot | None:
    """A panel for each metric that was measured; None: none was."""
    points = [point for line in lines for _, point in line.points]
    metrics = [METRICS[key] for key in keys]
    metrics = [it for it in metrics if any(point.median(it) is not None for point in points)]
    if not metrics:
        return None
    is_summary = len(lines) > MAX_SERIES
    legend = (
        []
        if is_summary
        else _legend_lines([shortened(line.name, _MAX_NAME) for line in lines if line.name])
    )
    height = -(-len(metrics) // _COLUMNS) * _PANEL_HEIGHT + 0.3
    figure, panels = _panels(len(metrics), height + _num_legend_lines(legend) * _LEGEND_LINE)
    for place, (panel, metric) in enumerate(zip(panels, metrics, strict=True)):
        draw_along(panel, axis, lines, metric)
        draw_ticks(panel, axis, _PANEL_POINTS)
        if place + _COLUMNS < len(metrics):
            panel.tick_params(labelbottom=False)
        else:
            panel.set_xlabel(axis.label)
    _add_legend(figure, legend)
    if is_summary:
        drawn = (
            f"The median of {len(lines)} combinations of everything else; thick: the middle half of"
            " them, thin: all."
        )
    else:
        drawn = "Each line differs from the others in nothing but what its name says."
    if any(len(point.measured) > 1 for point in points) and not is_summary:
        drawn += " Points are medians of the repetitions, upright lines their range."
    values = f"{axis.values[0]} to {axis.values[-1]}"
    return Plot(
        name,
        f"{title} against {axis.key}",
        drawn,
        f"{counted(len(metrics), 'panel')} against {axis.label}, {len(axis.values)} values from"
        f" {values}: {', '.join(metric.label for metric in metrics)}."
        f" {counted(len(lines), 'combination')} of everything else. The table of the variants has"
        " the figures.",
        figure,
    )


def _ranks(points: Sequence[Point]) -> Iterator[Plot]:
    """Of each variant the stage with most output."""
    busiest: dict[int, Point] = {}
    for point in points:
        if not point.measured[0].ranks:
            continue
        seen = busiest.setdefault(point.variant.number, point)
        if (point.median(THROUGHPUT) or 0) > (seen.median(THROUGHPUT) or 0):
            busiest[point.variant.number] = point
    several = [it for it in busiest.values() if len(it.measured[0].ranks) > 1]
    chosen = several or list(busiest.values())
    if not chosen:
        return
    skew = METRICS["rank_skew"]
    shown = sorted(chosen, key=lambda it: -(it.median(skew) or 0))[:MAX_RANK_PANELS]
    shown.sort(key=lambda it: it.variant.number)
    rows = -(-len(shown) // _COLUMNS)
    figure, panels = _panels(len(shown), rows * _PANEL_HEIGHT + 0.3 + _LEGEND_LINE)
    for place, (panel, point) in enumerate(zip(panels, shown, strict=True)):
        draw_ranks(panel, point)
        panel.set_ylabel("tokens")
        if place + _COLUMNS >= len(shown):
            panel.set_xlabel("rank")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)
    caption = "Of each variant with several ranks, at its stage with most output."
    if not several:
        caption = "Of each variant, at its stage with most output."
    if len(shown) < len(chosen):
        caption += f" Shown are the {len(shown)} of {len(chosen)} with most skew."
    skews = [value for it in shown if (value := it.median(skew)) is not None]
    most = f" The rank with most has up to {max(skews):.2f} times the mean." if skews else ""
    yield Plot(
        "rank-tokens",
        "Tokens by rank",
        caption,
        f"Bars of the prompt and output tokens of each rank, {counted(len(shown), 'variant')}."
        + most,
        figure,
    )


def _panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure((_WIDTH, height), layout="constrained")
    rows = -(-number // _COLUMNS)
    every = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    # The last row is the one that has labels below: it is full where there are several.
    first = number % _COLUMNS or _COLUMNS
    for unused in every[first:_COLUMNS]:
        unused.remove()
    return figure, every[:first] + every[_COLUMNS:]


def _legend_lines(names: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=COLOURS[place], marker=MARKERS[place], label=name)
        for place, name in enumerate(names)
    ]


def _num_legend_lines(lines: Sequence[Line2D]) -> int:
    return -(-len(lines) // _num_legend_columns(lines)) if lines else 0


def _num_legend_columns(lines: Sequence[Line2D]) -> int:
    """As many as stand beside each other in the figure's width."""
    widest = max(len(str(line.get_label())) for line in lines)
    return max(1, int(_WIDTH * 72 / (widest * 5.2 + 45)))


def _add_legend(figure: Figure, lines: Sequence[Line2D]) -> None:
    if lines:
        columns = _num_legend_columns(lines)
        figure.legend(handles=list(lines), loc="outside lower left", ncols=columns)
