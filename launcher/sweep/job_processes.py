"""The jobs of a sweep as processes: `python -m launcher ...`, one after the other."""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO, NamedTuple, Self

import psutil

from launcher.end_signals import end_signals

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""Source: prctl(2), linux/prctl.h."""
_TICK_S = 1.0
"""Between two looks at the clock of whoever shows it."""
_CLEAR_S = 15.0
"""That what a job leaves behind gets to notice that the job has ended."""
_KILLED_S = 5.0
"""Until the kernel has ended what was killed."""


class Ended(NamedTuple):
    """How a job has ended."""

    exit_code: int
    """Negative: the signal that ended it."""
    seconds: float
    timed_out: bool
    num_killed: int
    """Processes that were left behind, and killed."""


class JobProcesses:
    """Runs jobs, each from nothing: what one does to its process reaches no other.

    While it is entered, signals go on to the job that runs, and are noted; orphans of jobs become
    children of this process, so that nothing of a job can stay.

    Args:
        environment: That each job gets.

    Attributes:
        signal: The last one that came; None: none has.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._child: subprocess.Popen[bytes] | None = None
        self.signal: int | None = None

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._pass_on) for number in end_signals()}
        _set_option(_PR_SET_CHILD_SUBREAPER, 1)
        return self

    def __exit__(self, *_: object) -> None:
        _set_option(_PR_SET_CHILD_SUBREAPER, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(
        self,
        overrides: Sequence[str],
        *,
        timeout_s: float,
        end_s: float,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        kept_open: Sequence[int] = (),
        on_tick: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Runs one job to its end, and ends what it leaves behind.

        Args:
            overrides: As `python -m launcher` takes them, flags included.
            timeout_s: That it may take.
            end_s: That it then gets to end by itself.
            stdout: And `stderr`: where it writes; None: where this process does.
            kept_open: Descriptors that it holds too, for as long as it lives.
            on_tick: Called about once a second.
        """
        before = set(psutil.Process().children(recursive=True))
        began_s = time.monotonic()
        child = self._start(overrides, stdout, stderr, kept_open)
        pidfd = os.pidfd_open(child.pid)
        try:
            timed_out = not _ends_within(child.pid, pidfd, timeout_s, on_tick)
            if timed_out:
                child.send_signal(signal.SIGTERM)
                if not _ends_within(child.pid, pidfd, end_s, on_tick):
                    child.kill()
        finally:
            os.close(pidfd)
            exit_code = child.wait()
            self._child = None
        seconds = time.monotonic() - began_s
        return Ended(exit_code, seconds, timed_out, _clear(before))

    def _start(
        self,
        overrides: Sequence[str],
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        kept_open: Sequence[int],
    ) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "launcher", *overrides],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(kept_open),
            # A group of its own: what the terminal sends reaches it through us, once.
            process_group=0,
            # It drains if we are killed.
            preexec_fn=lambda: _set_option(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )
        if self.signal is not None:  # it came too early to be passed on
            self._child.send_signal(self.signal)
        return self._child

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._child is not None:
            self._child.send_signal(number)


def _ends_within(pid: int, pidfd: int, seconds: float, on_tick: Callable[[], None]) -> bool:
    """Whether a child ends in time. Sleeps meanwhile: on this machine others are measured."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0:
        if poll.poll(1000 * min(left_s, _TICK_S)):
            return True
        _reap_orphans(but=pid)
        on_tick()
    return bool(poll.poll(0))


def _reap_orphans(but: int) -> None:
    """Lets go of orphans that have ended: a job may wait until they are no more."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (ended := os.waitid(os.P_ALL, 0, flags)) is not None and ended.si_pid != but:
        os.waitpid(ended.si_pid, 0)


def _clear(before: set[psutil.Process]) -> int:
    """Waits for what a job has left behind, then kills it; of how many processes it was."""
    left = list(set(psutil.Process().children(recursive=True)) - before)
    _, left = psutil.wait_procs(left, _CLEAR_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, _KILLED_S)
    return len(left)


def _set_option(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
