"""The last load and the last metrics of each process: pure, the clock is an argument."""

import msgspec

from engine.protocol import Loads, MetricsReport, MetricsSnapshot, RankLoad


class LoadBoard:
    """The load of every rank that has reported one.

    Attributes:
        has_changed: Since the last snapshot.
    """

    def __init__(self) -> None:
        self.has_changed = False
        self._loads: dict[str, RankLoad] = {}
        self._heard: dict[str, float] = {}

    def take(self, name: str, load: RankLoad, now: float) -> None:
        self._loads[name] = load
        self._heard[name] = now
        self.has_changed = True

    def confirm(self, name: str, at: float) -> None:
        """The load of this process was still the same at that time."""
        if name in self._heard:
            self._heard[name] = max(self._heard[name], at)

    def forget(self, name: str) -> None:
        if self._loads.pop(name, None) is not None:
            del self._heard[name]
            self.has_changed = True

    def snapshot(self, epoch: int, now: float) -> Loads:
        self.has_changed = False
        return Loads(
            epoch, [_aged(load, now - self._heard[name]) for name, load in self._loads.items()]
        )


class MetricsBoard:
    """The metrics of every process that has reported some."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[MetricsReport, float]] = {}

    def take(self, report: MetricsReport, now: float) -> None:
        self._reports[report.name] = report, now

    def forget(self, name: str) -> None:
        self._reports.pop(name, None)

    def snapshot(self, now: float) -> MetricsSnapshot:
        return MetricsSnapshot(
            [
                msgspec.structs.replace(report, age_s=round(now - heard, 3))
                for report, heard in self._reports.values()
            ]
        )


def _aged(load: RankLoad, age_s: float) -> RankLoad:
    """Positional, since a thousand of them are made twenty times a second."""
    return RankLoad(
        load.rank,
        load.incarnation,
        load.num_waiting,
        load.num_running,
        load.waiting_tokens,
        load.output_tokens,
        load.kv_usage,
        load.step_s,
        age_s,
    )
