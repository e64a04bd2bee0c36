"""The text of `GET /metrics`: all processes' metrics, as one of the front ends knows them."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate

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

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SLICE = 10
"""Processes that are written before others get their turn; each takes about 0.1 ms."""
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


async def render(
    model_name: str, reports: Sequence[MetricsReport], members: Iterable[Member]
) -> bytes:
    """Prometheus text: what the processes counted, and which states they are in.

    In slices between which the loop goes on: a thousand ranks are 16 MB.

    Args:
        reports: One of each process, those that are shown with their ages.
    """
    page = _Page(model_name)
    for number, report in enumerate(reports):
        page.add_report(report)
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    for number, member in enumerate(members):
        page.add_member(member)
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    families = []
    for metric in (*METRICS.values(), *DERIVED):
        families.append(page.take_family(metric))
        await asyncio.sleep(0)
    return b"".join(families)


class _Page:
    """Samples of all processes, kept by metric as the format wants them."""

    def __init__(self, model_name: str) -> None:
        self._model = _label("model_name", model_name)
        self._samples: dict[Metric, list[str]] = {}

    def add_report(self, report: MetricsReport) -> None:
        sender = self._sender(report.role, report.rank, report.name)
        self._add(REPORT_AGE, sender, MetricValue("", (report.name,), report.age_s))
        for value in report.values:
            metric = METRICS.get(value.name)
            if metric is not None:  # else a process of another version counts it
                self._add(metric, sender, value)

    def add_member(self, member: Member) -> None:
        sender = self._sender(member.role, member.rank, member.name)
        self._add(PROCESS_STARTS, sender, MetricValue("", (member.name,), member.incarnation))
        for state in ProcessState:
            is_it = float(member.state is state)
            self._add(PROCESS_STATE, sender, MetricValue("", (member.name, state.value), is_it))

    def take_family(self, metric: Metric) -> bytes:
        """All samples of a metric under its head, freed here; nothing if there are none."""
        samples = self._samples.pop(metric, None)
        if samples is None:
            return b""
        name = PREFIX + metric.name + ("_total" if metric.kind is Kind.counter else "")
        head = f"# HELP {name} {metric.help}\n# TYPE {name} {metric.kind.value}\n"
        return "".join((head, *samples)).encode()

    def _add(self, metric: Metric, sender: str, value: MetricValue) -> None:
        labels = sender
        for name, of in zip(metric.labels, value.labels, strict=True):
            if of:  # to Prometheus an empty label is none
                labels += _label(name, of)
        samples = self._samples.setdefault(metric, [])
        name = PREFIX + metric.name
        match metric.kind:
            case Kind.counter:
                samples.append(f"{name}_total{{{labels}}} {value.value}\n")
            case Kind.gauge:
                samples.append(f"{name}{{{labels}}} {value.value}\n")
            case Kind.histogram:
                samples += [
                    f'{name}_bucket{{{labels}le="{bound}"}} {total}\n'
                    for bound, total in zip(_bounds(metric), accumulate(value.counts), strict=True)
                ]
                samples.append(f"{name}_sum{{{labels}}} {value.value}\n")
                samples.append(f"{name}_count{{{labels}}} {sum(value.counts)}\n")

    def _sender(self, role: Role, rank: int | None, name: str) -> str:
        """Labels that say whom a value is from."""
        labels = self._model
        if rank is not None:
            labels += _label("rank", str(rank))
        if role is Role.frontend:
            labels += _label("frontend", name)
        return labels


def _label(name: str, value: str) -> str:
    """With a comma, which the format allows after the last one too."""
    return f'{name}="{value.translate(_ESCAPED)}",'


@cache
def _bounds(metric: Metric) -> tuple[str, ...]:
    return (*(str(float(bound)) for bound in metric.bounds), "+Inf")
