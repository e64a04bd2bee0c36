"""What the person at the terminal is told: nobody who reads slowly holds the launcher up.

A reader that has gone (`| head`), or that stops (Ctrl-S), is no reason to stop serving.
"""

import contextlib
import queue
import threading

from rich.console import Console

_MAX_WAITING = 1000
"""Lines that wait for a slow reader; more are counted, not kept."""
_CLOSE_S = 1.0
"""Seconds that the reader gets for the last lines."""


class Terminal:
    """Writes lines to stderr, in their order, and never waits for whoever reads them."""

    def __init__(self) -> None:
        self._lines: queue.Queue[tuple[str, str | None] | None] = queue.Queue(_MAX_WAITING)
        self._num_dropped = 0
        self._console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)
        self._thread.start()

    def say(self, line: str, style: str | None = None) -> None:
        """Writes a line soon. May be called from any thread."""
        try:
            self._lines.put_nowait((line, style))
        except queue.Full:
            self._num_dropped += 1

    def close(self) -> None:
        """Writes what waits, if somebody reads it; lines that come later are lost."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_S)
            self._thread.join(_CLOSE_S)

    def _write(self) -> None:
        while (item := self._lines.get()) is not None:
            line, style = item
            num_dropped, self._num_dropped = self._num_dropped, 0
            with contextlib.suppress(OSError):
                self._console.print(line, style=style, markup=False)
                if num_dropped:
                    self._console.print(f"({num_dropped} lines could not be written)")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Goes quiet, where rich would end the process."""
        self.quiet = True
