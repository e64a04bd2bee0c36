"""The rows of a sweep, repetitions put together."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from launcher.bench.results import Results, StageResult
from launcher.sweep.metrics import Metric
from launcher.sweep.rows import Outcome, Row


class Spread(NamedTuple):
    """What repetitions have measured."""

    median: float
    low: float
    high: float
    num: int
    """Of repetitions: with 1 no spread is known."""

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread | None":
        """None: there are no values."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Point:
    """One variant in one stage: what a table has a line for, and a plot a mark."""

    variant: "Variant"
    stage: str
    measured: tuple[StageResult, ...]
    """By the repetitions that are valid."""

    def spread(self, metric: Metric) -> Spread | None:
        values = (metric.of(stage) for stage in self.measured)
        return Spread.over([value for value in values if value is not None])

    def median(self, metric: Metric) -> float | None:
        spread = self.spread(metric)
        return None if spread is None else spread.median


@dataclass(frozen=True, slots=True)
class Variant:
    """What was measured as often as `bench.repeat` says."""

    number: int
    """From 1, in the order typed: what tables and plots call it."""
    swept: dict[str, str]
    overrides: list[str]
    rows: tuple[Row, ...]
    """Its repetitions."""

    @property
    def results(self) -> list[Results]:
        """Of the repetitions that are valid."""
        return [
            row.results
            for row in self.rows
            if row.outcome is Outcome.valid and row.results is not None
        ]

    @property
    def name(self) -> str:
        """`dp=2 frontend.count=1`; empty: nothing was swept."""
        return " ".join(f"{key}={value}" for key, value in self.swept.items())

    @property
    def title(self) -> str:
        """`2: dp=2 frontend.count=1`."""
        return f"{self.number}: {self.name}" if self.swept else f"variant {self.number}"

    def points(self) -> Iterator[Point]:
        """Of each stage, in order."""
        stages: dict[str, list[StageResult]] = {}
        for results in self.results:
            for name, stage in named_stages(results.stages):
                stages.setdefault(name, []).append(stage)
        for name, measured in stages.items():
            yield Point(self, name, tuple(measured))


def variants_of(rows: Sequence[Row]) -> list[Variant]:
    """In the order in which they come first; equal overrides are repetitions."""
    together: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        together.setdefault(tuple(row.overrides), []).append(row)
    return [
        Variant(number, same[0].swept, same[0].overrides, tuple(same))
        for number, same in enumerate(together.values(), 1)
    ]


def named_stages(stages: Sequence[StageResult]) -> Iterator[tuple[str, StageResult]]:
    """Stages by names that differ: of equal ones the second is called `concurrency 4 (2)`."""
    seen: Counter[str] = Counter()
    for stage in stages:
        seen[stage.name] += 1
        times = seen[stage.name]
        yield stage.name if times == 1 else f"{stage.name} ({times})", stage
