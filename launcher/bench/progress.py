"""How far a benchmark is, on stderr: one line that changes on a terminal, else one now and then."""

import shutil
import sys
import time

from engine.wording import counted
from launcher.bench.messages import Progress

_PIPED_S = 10.0
"""Between two lines where no terminal shows them."""
_CLEAR = "\r\x1b[2K"
"""To the line's begin, and empty it. Source: ECMA-48, CR and EL."""


class Ticker:
    """Tells the progress of one stage.

    Args:
        title: `stage 2 of 3, concurrency 16`.
        num_requests: Of the stage.
        last_start_s: Seconds after its begin at which the last session starts; 0: when there is
            room.
    """

    def __init__(self, title: str, num_requests: int, last_start_s: float = 0.0) -> None:
        self._title, self._num_requests, self._last_start_s = title, num_requests, last_start_s
        self._began_s = self._told_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def tell(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1  # a broken line could not be cleared
            sys.stderr.write(f"{_CLEAR}{self.line(progress, now_s - self._began_s)[:width]}")
            sys.stderr.flush()
        elif now_s - self._told_s >= _PIPED_S:
            self._told_s = now_s
            sys.stderr.write(f"{self.line(progress, now_s - self._began_s)}\n")

    def clear(self) -> None:
        if self._is_terminal:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def line(self, progress: Progress, elapsed_s: float) -> str:
        rate = progress.num_parts / elapsed_s if elapsed_s > 0 else 0.0
        left_s = self._left_s(progress, elapsed_s)
        parts = [
            f"{self._title}: {progress.num_done} of {counted(self._num_requests, 'request')}",
            f"{rate:.0f} tok/s",
            f"{progress.num_failed} failed" if progress.num_failed else "",
            "" if left_s is None else f"ETA {left_s:.0f} s",
        ]
        return ", ".join(filter(None, parts))

    def _left_s(self, progress: Progress, elapsed_s: float) -> float | None:
        """Seconds until the stage is done, at the speed so far; None: nothing is known yet.

        While sessions still arrive their times tell more than what is done: that comes later.
        """
        if not progress.num_done:
            return None
        if elapsed_s < self._last_start_s:
            return self._last_start_s - elapsed_s
        return elapsed_s * (self._num_requests - progress.num_done) / progress.num_done
