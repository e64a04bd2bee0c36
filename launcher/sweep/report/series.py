"""Which lines a plot of a metric has: points that differ in one key alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.sweep.variants import Point

NOT_SET = "(not set)"
"""The value of a key that a variant does not set."""
_STAGE_KEYS = ("bench.concurrency", "bench.rate")
"""Swept, they make stages that differ: those are shown instead."""
_LOGARITHMIC_FROM = 8.0
"""Ratio of an axis' largest value to its smallest: 1, 2, 4, 8."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A key and the values that points have of it, in the order in which they are shown."""

    key: str
    label: str
    values: tuple[str, ...]
    numbers: tuple[float, ...] | None
    """The values; None: not all are numbers, they are categories."""

    @property
    def positions(self) -> tuple[float, ...]:
        return tuple(map(float, range(len(self.values)))) if self.numbers is None else self.numbers

    @property
    def is_logarithmic(self) -> bool:
        numbers = self.numbers
        if numbers is None or numbers[0] <= 0:
            return False
        return numbers[-1] / numbers[0] >= _LOGARITHMIC_FROM


@dataclass(frozen=True, slots=True)
class Series:
    """Points that agree in everything but the key of an axis."""

    name: str
    """In what it differs from other series, `dp=2, concurrency 4`; empty: it is the only one."""
    points: tuple[tuple[float, Point], ...]
    """With their positions on the axis, in its order."""


class Grid:
    """Points by what tells them apart: the keys that were swept, and the load of their stage.

    Attributes:
        axes: Of every key of which the points have several values, the load last.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points
        load = _load_key(points)
        self._choices = [
            {
                **{key: it for key, it in point.variant.swept.items() if key not in _STAGE_KEYS},
                load: _load(point, load),
            }
            for point in points
        ]
        keys = dict.fromkeys(key for each in self._choices for key in each if key != load)
        axes = (self._axis(key) for key in (*keys, load))
        self.axes = [axis for axis in axes if len(axis.values) > 1]

    def series(self, along: Axis) -> list[Series]:
        """The lines of a plot against one of the axes."""
        positions = dict(zip(along.values, along.positions, strict=True))
        others = [axis.key for axis in self.axes if axis.key != along.key]
        lines: dict[tuple[str, ...], list[tuple[float, Point]]] = {}
        for point, choice in zip(self._points, self._choices, strict=True):
            same = tuple(_named(key, choice.get(key, NOT_SET)) for key in others)
            place = positions[choice.get(along.key, NOT_SET)]
            lines.setdefault(same, []).append((place, point))
        return [
            Series(", ".join(same), tuple(sorted(line, key=lambda each: each[0])))
            for same, line in lines.items()
        ]

    def _axis(self, key: str) -> Axis:
        values = list(dict.fromkeys(each.get(key, NOT_SET) for each in self._choices))
        label = _LOAD_LABELS.get(key, key)
        try:
            by_number = sorted((float(value), value) for value in values)
        except ValueError:
            return Axis(key, label, tuple(values), None)
        numbers = tuple(number for number, _ in by_number)
        if not all(map(math.isfinite, numbers)):
            return Axis(key, label, tuple(values), None)
        return Axis(key, label, tuple(value for _, value in by_number), numbers)


_LOAD_LABELS = {
    "concurrency": "concurrency (sessions)",
    "rate": "rate (sessions/s)",
}


def _load_key(points: Sequence[Point]) -> str:
    """`concurrency` or `rate` where that names every stage, else `stage`."""
    stages = [point.measured[0] for point in points]
    if any(point.stage != stage.name for point, stage in zip(points, stages, strict=True)):
        return "stage"  # of two with the same load one has another name
    if all(stage.concurrency is not None for stage in stages):
        return "concurrency"
    return "rate" if all(stage.rate is not None for stage in stages) else "stage"


def _load(point: Point, key: str) -> str:
    return point.stage if key == "stage" else f"{getattr(point.measured[0], key):g}"


def _named(key: str, value: str) -> str:
    if key == "stage":
        return value
    return f"{key} {value}" if key in _LOAD_LABELS else f"{key}={value}"
