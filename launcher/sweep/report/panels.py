"""What is drawn inside one pair of axes."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator

from launcher.sweep.metrics import METRICS, Metric
from launcher.sweep.pareto import pareto_front
from launcher.sweep.report.series import Axis, Series
from launcher.sweep.report.style import BEST, COLOURS, FAINT, INK, MARKERS, PAPER
from launcher.sweep.report.tables import printable
from launcher.sweep.variants import Point, Spread

MAX_SERIES = len(COLOURS)
"""Lines that one can tell apart; of more the median and the range are drawn."""
_MAX_VECTORS = 1000
"""Marks in a panel that are drawn one by one; more become a picture, or files would be large."""
_CHARACTER_POINTS = 5.2
"""Width of a tick's label for each character, at its size."""
_MAX_TICK = 16
"""Characters of a tick's label."""
_MAX_TITLE = 30
"""Characters of the title of a panel of ranks."""
_FEW_LABELS_POINTS = 13.0
"""Numbers of points are this far apart, or left out."""
_LEFT_POINTS = 30.0
"""Nearer to the axis a number has no room on that side."""
THROUGHPUT = METRICS["output_tok_s"]


def draw_frontier(axes: Axes, points: Sequence[Point], cost: Metric, best: Point | None) -> None:
    """Throughput against a latency: each variant's stages as a line, and the Pareto front."""
    known = [
        (point, (x, y))
        for point in points
        if (x := point.median(cost)) is not None and (y := point.median(THROUGHPUT)) is not None
    ]
    variants = list(dict.fromkeys(point.variant.number for point in points))
    are_many = len(variants) > MAX_SERIES
    if are_many:
        is_picture = len(known) > _MAX_VECTORS
        axes.plot(*_columns(known), ".", color=COLOURS[0], alpha=0.6, rasterized=is_picture)
    else:
        for number, colour, marker in zip(variants, COLOURS, MARKERS, strict=False):
            of = [each for each in known if each[0].variant.number == number]
            axes.plot(*_columns(of), color=colour, marker=marker, linewidth=1)
            for point, (x, _) in of:
                _draw_range(axes, x, point.spread(THROUGHPUT), colour)
    front = [known[i] for i in pareto_front([place for _, place in known])]
    axes.plot(*_columns(front), color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=2.5)
    axes.plot(
        *_columns(front), "o", markersize=9, markerfacecolor="none", color=INK, markeredgewidth=0.9
    )
    starred = [each for each in known if each[0] is best]
    axes.plot(*_columns(starred), "*", markersize=11, color=BEST, markeredgecolor=PAPER, zorder=4)
    axes.set_xlabel(cost.label)
    if known:  # from 0, with room for the marks of what is farthest
        axes.set(xlim=(0, 1.08 * axes.dataLim.x1 or 1), ylim=(0, 1.08 * axes.dataLim.y1 or 1))
    if are_many:
        _number(axes, front)


def draw_along(axes: Axes, axis: Axis, lines: Sequence[Series], metric: Metric) -> None:
    """A metric against a key, a line for each series, with the range of repetitions."""
    if axis.is_logarithmic:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(lines) > MAX_SERIES:
        _draw_summary(axes, lines, metric)
    else:
        for place, line in enumerate(lines):
            at = [(x, it) for x, point in line.points if (it := point.spread(metric)) is not None]
            xs, ys = [x for x, _ in at], [spread.median for _, spread in at]
            axes.plot(xs, ys, color=COLOURS[place], marker=MARKERS[place])
            for x, spread in at:
                _draw_range(axes, x, spread, COLOURS[place])
    axes.set_title(metric.title)
    axes.set_ylabel(metric.unit)
    axes.margins(x=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if metric.key != "rank_skew":  # whose least value is 1
        axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 6))


def draw_ticks(axes: Axes, axis: Axis, width_points: float) -> None:
    """The values that have room."""
    names = [shortened(name, _MAX_TICK) for name in axis.values]
    widest = max(map(len, names)) * _CHARACTER_POINTS + 4
    is_turned = axis.numbers is None and widest * len(names) > width_points
    needed = 12.0 if is_turned else widest
    transform, (left, right) = axes.transData, axes.get_xlim()
    start, end = transform.transform([(left, 1), (right, 1)])[:, 0]
    shown: list[int] = []
    last = -needed
    for place, position in enumerate(axis.positions):
        at = (transform.transform((position, 1))[0] - start) / (end - start) * width_points
        if at - last >= needed:
            shown.append(place)
            last = at
    axes.set_xticks([axis.positions[place] for place in shown], [names[place] for place in shown])
    if is_turned:
        axes.tick_params(axis="x", rotation=35)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")


def draw_ranks(axes: Axes, point: Point) -> None:
    """Tokens of each rank, prompt beside output: medians, and the range of repetitions."""
    ranks = sorted({each.rank for stage in point.measured for each in stage.ranks})
    for place, kind in enumerate(("prompt", "output")):
        of = [
            [
                getattr(each, f"num_{kind}_tokens")
                for stage in point.measured
                for each in stage.ranks
                if each.rank == rank
            ]
            for rank in ranks
        ]
        xs = [rank + 0.4 * place - 0.2 for rank in ranks]
        heights = [statistics.median(values) for values in of]
        axes.bar(xs, heights, 0.38, color=COLOURS[place], label=kind)
        for x, values in zip(xs, of, strict=True):
            _draw_range(axes, x, Spread.over(values), INK)
    axes.set_title(shortened(point.variant.title, _MAX_TITLE), fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=False, axis="x")


def _draw_summary(axes: Axes, lines: Sequence[Series], metric: Metric) -> None:
    """Of all series at each place: the median, half of them (thick), all (thin)."""
    at: dict[float, list[float]] = {}
    for line in lines:
        for x, point in line.points:
            if (value := point.median(metric)) is not None:
                at.setdefault(x, []).append(value)
    places = sorted(at)
    axes.plot(places, [statistics.median(at[x]) for x in places], color=COLOURS[0], marker="o")
    axes.vlines(places, [min(at[x]) for x in places], [max(at[x]) for x in places], FAINT, lw=0.9)
    several = [x for x in places if len(at[x]) > 1]
    quarters = [statistics.quantiles(at[x], n=4, method="inclusive") for x in several]
    axes.vlines(
        several,
        [low for low, _, _ in quarters],
        [high for *_, high in quarters],
        COLOURS[0],
        lw=3.5,
    )


def _draw_range(axes: Axes, x: float, spread: Spread | None, colour: str) -> None:
    if spread is not None and spread.num > 1:
        axes.vlines(x, spread.low, spread.high, colour, lw=1.1)


def _number(axes: Axes, front: Sequence[tuple[Point, tuple[float, float]]]) -> None:
    """Writes the variants' numbers beside their points, where there is room."""
    box = axes.get_window_extent()
    last: tuple[float, float] | None = None
    for point, place in front:
        x, y = axes.transData.transform(place) - (box.x0, box.y0)
        x, y = x * 72 / axes.figure.dpi, y * 72 / axes.figure.dpi
        if last is not None and max(abs(x - last[0]), abs(y - last[1])) < _FEW_LABELS_POINTS:
            continue
        last = (x, y)
        is_left = x > _LEFT_POINTS  # where the front leaves room
        axes.annotate(
            str(point.variant.number),
            place,
            (-5, 5) if is_left else (6, -3),
            textcoords="offset points",
            horizontalalignment="right" if is_left else "left",
            fontsize=8,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )


def _columns(
    places: Sequence[tuple[Point, tuple[float, float]]],
) -> tuple[list[float], list[float]]:
    return [x for _, (x, _) in places], [y for _, (_, y) in places]


def shortened(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"
