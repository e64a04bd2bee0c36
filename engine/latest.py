"""A value of which others are told the newest, now and then: for reports to the coordinator.

The clock is an argument, in seconds.
"""

import math
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """A value that is sent when it changes, but not twice within an interval."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._value: T | None = None
        self._sent: T | None = None
        self._put_s = 0.0
        self._earliest = 0.0
        self.due = math.inf
        """When to send it next."""

    def put(self, value: T, now: float) -> bool:
        """Whether the sender does not know yet that there is something to send."""
        with self._lock:
            self._value, self._put_s = value, now
            if value == self._sent or self.due != math.inf:
                return False
            self.due = self._earliest
            return True

    def take(self, now: float) -> T | None:
        """What is to be sent now."""
        with self._lock:
            if now < self.due:
                return None
            self.due = math.inf
            self._earliest = now + self._interval_s
            self._sent = self._value
            return self._value

    def age_s(self, now: float) -> float | None:
        """How long ago what was sent last was still the value; None: another waits to be sent."""
        with self._lock:
            is_sent = self._sent is not None and self.due == math.inf
            return max(0.0, now - self._put_s) if is_sent else None

    def repeat(self) -> None:
        """Sends the last value once more."""
        with self._lock:
            if self._value is not None:
                self.due = self._earliest
