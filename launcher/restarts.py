"""How often a process may be started again: pure, the clock is an argument."""

from collections import defaultdict, deque

from engine.config import RestartOptions


class Restarts:
    """Counts the restarts of each process within a sliding window."""

    def __init__(self, options: RestartOptions) -> None:
        self._options = options
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def allow(self, name: str, now: float) -> bool:
        """Whether the process may be started again now; if so, it counts as started."""
        if self.recent(name, now) >= self._options.limit:
            return False
        self._times[name].append(now)
        return True

    def recent(self, name: str, now: float) -> int:
        """How many restarts of the process count now."""
        times = self._times[name]
        while times and now - times[0] >= self._options.window_s:
            times.popleft()
        return len(times)
