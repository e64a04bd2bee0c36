"""How long a rank may show no progress before it is stuck: pure, the clock is an argument."""


class Patience:
    """Twice the longest pause between two signs of progress that there has been.

    A layer of a long prefill takes seconds with a large model on a CPU, and on a GPU, where layers
    are counted when they are launched, a step waits for all of them at once.

    Args:
        limit_s: The most that it becomes: what never ends is not waited for.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._noted_s: float | None = None
        self._longest_s = 0.0

    def note(self, now_s: float) -> None:
        """There is progress."""
        if self._noted_s is not None:
            self._longest_s = max(self._longest_s, now_s - self._noted_s)
        self._noted_s = now_s

    @property
    def value_s(self) -> float:
        return min(2 * self._longest_s, self._limit_s)
