"""The client processes, seen from the launcher."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from launcher.bench.messages import FROM_CLIENT, FromClient, Job, Outcome, Progress, read, write
from launcher.errors import LauncherError

_SILENCE_S = 30.0
"""A client tells its progress twice a second while it works."""
_END_S = 5.0
"""Until a client has ended whose pipe is closed."""


class ClientFailed(LauncherError):
    """A client process ended, or says nothing any more."""


class Clients:
    """So many client processes; `end` may be called at any time, from another thread too."""

    def __init__(self, number: int) -> None:
        self._heard: queue.Queue[tuple[int, FromClient | None]] = queue.Queue()
        self._has_ended = False
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "launcher.bench.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A group of its own: Ctrl-C is for the launcher, which ends them when it is done.
                process_group=0,
            )
            for _ in range(number)
        ]
        for index in range(number):
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()

    @property
    def number(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> list[Outcome]:
        """Lets each client do its job, and waits for all.

        Args:
            jobs: One for each client, or fewer.
            on_progress: Called with the progress of all together.

        Raises:
            ClientFailed: One ended, or said nothing for so long.
        """
        for process, job in zip(self._processes, jobs, strict=False):
            assert process.stdin is not None
            try:
                write(process.stdin, job)
            except OSError:  # it has ended; so the listening thread says
                break
        progress = [Progress(0, 0, 0)] * len(jobs)
        outcomes: dict[int, Outcome] = {}
        begin_s = max((job.begin_s for job in jobs), default=0.0)
        heard_s = [max(time.monotonic(), begin_s)] * len(jobs)
        while len(outcomes) < len(jobs):
            waiting = [index for index in range(len(jobs)) if index not in outcomes]
            late_s = min(heard_s[index] for index in waiting) + _SILENCE_S - time.monotonic()
            try:
                index, message = self._heard.get(timeout=max(0.0, late_s))
            except queue.Empty:
                raise ClientFailed(f"a client process said nothing for {_SILENCE_S:g} s") from None
            if message is None:
                raise ClientFailed(f"a client process ended{self._reason(index)}")
            heard_s[index] = time.monotonic()
            if isinstance(message, Outcome):
                outcomes[index] = message
            else:
                progress[index] = message
                on_progress(_sum(progress))
        return [outcomes[index] for index in range(len(jobs))]

    def end(self) -> None:
        """Closes the pipes, upon which the clients end whatever they do."""
        self._has_ended = True
        for process in self._processes:
            if process.stdin is not None and not process.stdin.closed:
                try:
                    process.stdin.close()
                except OSError:  # what was still to be written
                    process.kill()
        deadline = time.monotonic() + _END_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _listen(self, index: int) -> None:
        stream = self._processes[index].stdout
        assert stream is not None
        with stream:
            try:
                while (message := read(stream, FROM_CLIENT)) is not None:
                    self._heard.put((index, message))
            except (OSError, msgspec.DecodeError):
                pass
        self._heard.put((index, None))

    def _reason(self, index: int) -> str:
        if self._has_ended:
            return ": it was told to"
        code = self._processes[index].wait(_END_S)
        return f": exit code {code}, see above"


def _sum(parts: Sequence[Progress]) -> Progress:
    return Progress(
        sum(part.num_done for part in parts),
        sum(part.num_failed for part in parts),
        sum(part.num_parts for part in parts),
    )
