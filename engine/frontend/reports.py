"""Which reports `GET /metrics` shows: pure, the clock is an argument, in seconds."""

import math
from typing import NamedTuple

import msgspec

from engine.metrics import CPU_SECONDS
from engine.protocol import MetricsReport, MetricsSnapshot


class _Dated(NamedTuple):
    report: MetricsReport
    reported_s: float


class Reports:
    """What the coordinator published last, and this front end's own last report.

    All front ends show what was published, itself included: scrapes that land on one and then on
    another must not see a counter go back, which Prometheus takes for a restart. Once the
    coordinator has been silent for `max_age_s`, nothing that it published is shown any more, and of
    itself a front end shows what it reported last.
    """

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._snapshot = MetricsSnapshot([])
        self._snapshot_s = -math.inf
        self._own: _Dated | None = None
        self._shown_own: _Dated | None = None

    def take_snapshot(self, snapshot: MetricsSnapshot, now_s: float) -> None:
        self._snapshot, self._snapshot_s = snapshot, now_s

    def take_own(self, report: MetricsReport, now_s: float) -> None:
        """This process's report, as it is sent to the coordinator."""
        self._own = _Dated(report, now_s)

    def shown(self, now_s: float) -> list[MetricsReport]:
        """Of each process the report to show, with its age."""
        is_current = now_s - self._snapshot_s <= self._max_age_s
        dated = {
            report.name: _Dated(report, self._snapshot_s - report.age_s)
            for report in (self._snapshot.processes if is_current else ())
        }
        if self._own is not None:
            name = self._own.report.name
            dated[name] = self._shown_own = self._choose_own(self._own, dated.get(name))
        return [
            msgspec.structs.replace(report, age_s=round(now_s - reported_s, 3))
            for report, reported_s in dated.values()
        ]

    def _choose_own(self, own: _Dated, published: _Dated | None) -> _Dated:
        if published is None or published.report.incarnation != own.report.incarnation:
            return own
        shown = self._shown_own
        # What a coordinator publishes first after a silence may be older than what was shown in it.
        if shown is not None and _cpu_seconds(shown.report) > _cpu_seconds(published.report):
            return shown
        return published


def _cpu_seconds(report: MetricsReport) -> float:
    """Grows from each report of a process to the next: which of two is the later one."""
    return next((each.value for each in report.values if each.name == CPU_SECONDS.name), 0.0)
