"""How far a sweep is, on stderr: a line for each job, and one that changes on a terminal."""

import shutil
import sys
import time
from collections.abc import Sequence

from launcher.bench.progress import CLEAR
from launcher.sweep.metrics import METRICS
from launcher.sweep.report.tables import printable, shown
from launcher.sweep.rows import Outcome, Row

_FIGURES = (
    ("output_tok_s", "output {} tok/s"),
    ("ttft_ms.p50", "TTFT {} ms"),
    ("tpot_ms.p50", "TPOT {} ms"),
)
"""Of the stage with most output."""
_INTERRUPTED = "interrupted: ending the job that runs (Ctrl-C again forces)"


class Progress:
    """Tells it, and reckons when all will be done.

    Args:
        num_jobs: That are to be run now.
        known: Rows from before, whose times are known.
    """

    def __init__(self, num_jobs: int, known: Sequence[Row]) -> None:
        self._num_jobs, self._num_begun = num_jobs, 0
        self._seconds = [row.seconds for row in known if row.outcome is Outcome.valid]
        self._began_s = self._job_began_s = time.monotonic()
        self._name, self._is_ending = "", False
        self._is_terminal = sys.stderr.isatty()

    def begin(self, row: Row) -> None:
        self._num_begun += 1
        self._job_began_s = time.monotonic()
        values = (f"{key}={value}" for key, value in row.swept.items())
        repetition = f", repetition {row.repetition + 1}" if row.repetition else ""
        name = " ".join(("", *values)) + repetition
        self._name = f"job {self._num_begun} of {self._num_jobs}:{name}".rstrip(":")
        if self._is_terminal:
            self.tick()
        else:
            sys.stderr.write(f"{self._name} ({self._times()})\n")

    def tick(self, is_interrupted: bool = False) -> None:
        """Says once that the sweep ends; shows the time that passes, where a terminal can."""
        if is_interrupted and not self._is_ending:
            self._is_ending = True
            clear = CLEAR if self._is_terminal else ""
            sys.stderr.write(f"{clear}{_INTERRUPTED}\n")
        if not self._is_terminal:
            return
        job_s = time.monotonic() - self._job_began_s
        line = f"{self._name}  {duration(job_s)} ({self._times()})"
        sys.stderr.write(f"{CLEAR}{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()

    def end(self, row: Row) -> None:
        if self._is_terminal:
            sys.stderr.write(f"{CLEAR}{self._name}\n")
        if row.outcome is Outcome.valid:  # one that crashes at once says nothing of the others
            self._seconds.append(row.seconds)
        sys.stderr.write(f"    {finished(row)}\n")

    def _times(self) -> str:
        now_s = time.monotonic()
        num_left = self._num_jobs - self._num_begun + 1
        left_s = eta_s(self._seconds, num_left, now_s - self._job_began_s)
        eta = "" if left_s is None else f", ETA {duration(left_s)}"
        return f"sweep {duration(now_s - self._began_s)}{eta}"


def eta_s(seconds: Sequence[float], num_left: int, running_s: float) -> float | None:
    """Seconds until all is done, if jobs go on as those before; None: there are none.

    Args:
        seconds: That jobs have taken.
        num_left: The job that runs included.
        running_s: That it has run.
    """
    if not seconds:
        return None
    mean_s = sum(seconds) / len(seconds)
    return (num_left - 1) * mean_s + max(0.0, mean_s - running_s)


def finished(row: Row) -> str:
    """`valid after 12 s: output 512 tok/s, TTFT 12.1 ms, TPOT 3.21 ms`."""
    if row.outcome is Outcome.not_run:
        return row.said
    how = f"{row.outcome.value.replace('_', ' ')} after {duration(row.seconds)}"
    if row.outcome is not Outcome.valid or row.results is None:
        return f"{how}: {printable(row.said)}"
    stage = max(row.results.stages, key=lambda each: each.output_tok_s)
    values = [(METRICS[key].of(stage), text) for key, text in _FIGURES]
    figures = [text.format(shown(value)) for value, text in values if value is not None]
    at = f" at {stage.name}" if len(row.results.stages) > 1 else ""
    return f"{how}: {', '.join(figures)}{at}"


def duration(seconds: float) -> str:
    """`7 s`, `3:07 min`, `2:03:07 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
