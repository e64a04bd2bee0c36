"""Whether the second of two runs is worse: pure, from what was read of them."""

from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec

from launcher.compare.matching import Pair, matched
from launcher.compare.notes import notes_on
from launcher.compare.runs import Run
from launcher.sweep.metrics import METRICS, Better, Metric
from launcher.sweep.variants import Point, Spread

COMPARISON_VERSION = 1


class Verdict(Enum):
    """On the second."""

    better = "better"
    same = "same"
    """Within the tolerance."""
    unclear = "unclear"
    """Beyond the tolerance, and within the spread of the repetitions."""
    worse = "worse"


class Measured(msgspec.Struct, frozen=True):
    median: float
    low: float
    high: float
    num_repetitions: int


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one variant in one stage."""

    variant: str
    """What tells it from others; empty: there is one."""
    stage: str
    metric: str
    unit: str
    better: Better
    """Which value is the better one."""
    first: Measured
    second: Measured
    ratio: float | None
    """Second to first; None: the first is 0."""
    exceeds_spread: bool | None
    """The ranges of the repetitions do not overlap; None: neither was repeated."""
    verdict: Verdict


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    created: str
    git_commit: str | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    version: int = COMPARISON_VERSION
    first: RunSummary
    second: RunSummary
    tolerance: float
    is_worse: bool
    """A figure is worse, or what was valid no longer is."""
    differences: list[Difference]
    no_longer_valid: list[str]
    """Variants with valid results in the first alone, and why."""
    notes: list[str]
    """What is not compared, or makes the comparison worth less."""


def compare_runs(first: Run, second: Run, metrics: Sequence[str], tolerance: float) -> Comparison:
    """Every figure of what both have, and what only one has."""
    pairs, unmatched, no_longer_valid = matched(first, second)
    points, other_stages = _matched_points(pairs)
    differences = [
        difference
        for variant, one, other in points
        for metric in map(METRICS.__getitem__, dict.fromkeys(metrics))
        if (difference := _difference(variant, metric, one, other, tolerance)) is not None
    ]
    spread_notes = []
    if any(each.exceeds_spread is None for each in differences):
        spread_notes.append(
            "the spread is not known where nothing was repeated: the tolerance alone decides"
        )
    return Comparison(
        first=_summary(first),
        second=_summary(second),
        tolerance=tolerance,
        is_worse=bool(no_longer_valid)
        or any(each.verdict is Verdict.worse for each in differences),
        differences=differences,
        no_longer_valid=no_longer_valid,
        notes=[
            *unmatched,
            *other_stages,
            *_not_measured(points, metrics),
            *spread_notes,
            *notes_on(first, second),
        ],
    )


def _matched_points(
    pairs: Sequence[Pair],
) -> tuple[list[tuple[str, Point, Point]], list[str]]:
    """Stages that both variants of a pair have; a line for each that one has alone."""
    points, lines = [], []
    for name, first, second in pairs:
        of_first = {point.stage: point for point in first.points()}
        of_second = {point.stage: point for point in second.points()}
        points += [(name, it, of_second[key]) for key, it in of_first.items() if key in of_second]
        of = f" of {name}" if name else ""
        for which, one, other in (
            ("first", of_first, of_second),
            ("second", of_second, of_first),
        ):
            lines += [f"only the {which} has {stage}{of}" for stage in one if stage not in other]
    return points, lines


def _difference(
    variant: str, metric: Metric, first: Point, second: Point, tolerance: float
) -> Difference | None:
    """None: one of them did not measure it."""
    a, b = first.spread(metric), second.spread(metric)
    if a is None or b is None:
        return None
    exceeds = None if a.num == b.num == 1 else b.low > a.high or b.high < a.low
    return Difference(
        variant=variant,
        stage=first.stage,
        metric=metric.key,
        unit=metric.unit,
        better=metric.better,
        first=Measured(*a),
        second=Measured(*b),
        ratio=b.median / a.median if a.median else None,
        exceeds_spread=exceeds,
        verdict=_verdict(metric, a, b, tolerance, exceeds is not False),
    )


def _verdict(
    metric: Metric, first: Spread, second: Spread, tolerance: float, is_clear: bool
) -> Verdict:
    """Judged by the medians."""
    change = second.median - first.median
    if abs(change) <= tolerance * abs(first.median):
        return Verdict.same
    if not is_clear:
        return Verdict.unclear
    return Verdict.better if (change > 0) is (metric.better is Better.higher) else Verdict.worse


def _not_measured(
    points: Sequence[tuple[str, Point, Point]], metrics: Sequence[str]
) -> Iterator[str]:
    for key in dict.fromkeys(metrics):
        metric = METRICS[key]
        firsts = any(first.spread(metric) is not None for _, first, _ in points)
        seconds = any(second.spread(metric) is not None for _, _, second in points)
        if not (firsts and seconds):
            by = "neither" if firsts == seconds else f"the {'first' if firsts else 'second'} alone"
            yield f"{key} is measured by {by}"


def _summary(run: Run) -> RunSummary:
    return RunSummary(
        path=str(run.path), created=run.created, git_commit=run.environment.git_commit
    )
