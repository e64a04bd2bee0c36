"""The text of `GET /metrics`: all processes' metrics, as one of the front ends knows them."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from engine.config import Role
from engine.metrics import (
    DERIVED,
    METRICS,
    PREFIX,
    PROCESS_STARTS,
    PROCESS_STATE,
    REPORT_AGE,
    Kind,
    Metric,
    MetricValue,
)
from engine.protocol import Member, MetricsReport, ProcessState

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def render(model_name: str, reports: Iterable[MetricsReport], members: Iterable[Member]) -> bytes:
    """Prometheus text: what the processes counted, and which states they are in.

    Args:
        reports: One of each process, those that are shown with their ages.
    """
    return generate_latest(_Families(model_name, reports, members))


class _Sender(NamedTuple):
    """Whom a value is from, as labels say it; empty ones are left out."""

    rank: str
    frontend: str


class _Families:
    """Collects as prometheus_client does: by metric, all senders together."""

    def __init__(
        self, model_name: str, reports: Iterable[MetricsReport], members: Iterable[Member]
    ) -> None:
        self._model_name = model_name
        self._families: dict[str, Family] = {}
        for report in reports:
            sender = _sender(report.role, report.rank, report.name)
            self._add(REPORT_AGE, sender, MetricValue("", (report.name,), report.age_s))
            for value in report.values:
                metric = METRICS.get(value.name)
                if metric is not None:  # else a process of another version counts it
                    self._add(metric, sender, value)
        for member in _newest(members):
            sender = _sender(member.role, member.rank, member.name)
            self._add(PROCESS_STARTS, sender, MetricValue("", (member.name,), member.incarnation))
            for state in ProcessState:
                labels = (member.name, state.value)
                self._add(PROCESS_STATE, sender, MetricValue("", labels, member.state is state))

    def collect(self) -> Iterator[Family]:
        for metric in (*METRICS.values(), *DERIVED):
            if metric.name in self._families:
                yield self._families[metric.name]

    def _add(self, metric: Metric, sender: _Sender, value: MetricValue) -> None:
        family = self._families.get(metric.name)
        if family is None:
            family = Family(PREFIX + metric.name, metric.help, metric.kind.value)
            self._families[metric.name] = family
        labels = {"model_name": self._model_name}
        labels |= {name: of for name, of in sender._asdict().items() if of}
        labels |= zip(metric.labels, value.labels, strict=True)
        match metric.kind:
            case Kind.counter:
                family.add_sample(f"{family.name}_total", labels, value.value)
            case Kind.gauge:
                family.add_sample(family.name, labels, value.value)
            case Kind.histogram:
                _add_histogram(family, labels, metric, value)


def _add_histogram(
    family: Family, labels: dict[str, str], metric: Metric, value: MetricValue
) -> None:
    bounds = [*(str(float(bound)) for bound in metric.bounds), "+Inf"]
    total = 0
    for bound, total in zip(bounds, accumulate(value.counts), strict=True):
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, total)
    family.add_sample(f"{family.name}_sum", labels, value.value)
    family.add_sample(f"{family.name}_count", labels, total)


def _sender(role: Role, rank: int | None, name: str) -> _Sender:
    return _Sender(
        rank="" if rank is None else str(rank), frontend=name if role is Role.frontend else ""
    )


def _newest(members: Iterable[Member]) -> Iterable[Member]:
    """Of each process the incarnation started last."""
    newest: dict[str, Member] = {}
    for member in members:
        known = newest.get(member.name)
        if known is None or known.incarnation < member.incarnation:
            newest[member.name] = member
    return newest.values()
