"""What a deployment must not leave behind: processes, sockets, its run directory."""

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from launcher.executors.base import Executor
from launcher.smoke.results import CheckFailed

_GONE_S = 5.0
"""Seconds that the kernel, and whoever reaps orphans, may take to clear away what has ended."""


class Leftovers:
    """Takes note of what there is while the deployment runs, and looks for it afterwards.

    What was there before the deployment is none of it.
    """

    def __init__(self) -> None:
        self._before = set(psutil.Process().children())
        self._processes: set[psutil.Process] = set()
        self._directories: set[Path] = set()
        self._addresses: set[str] = set()
        self._executor: Executor | None = None

    def note(self, executor: Executor) -> None:
        """Looks at what there is now; called again, at what has come since."""
        self._note_processes()
        self._executor = executor
        for path in executor.private_addresses:
            self._directories.add(Path(path).parent)
        self._addresses |= set(executor.addresses)

    def check_gone(self, logs_stay: bool) -> str:
        """Waits a little until all of it is gone.

        Args:
            logs_stay: The deployment has failed: its logs are for the user to read.

        Raises:
            CheckFailed: Something is still there.
        """
        self._note_processes()
        left = [process for process in self._processes if _runs(process)]
        _, left = psutil.wait_procs(left, _GONE_S)
        found = [f"process {process.pid}" for process in left if _runs(process)]
        for directory in self._directories:
            found += [str(path) for path in _files(directory, logs_stay)]
        found += [f"a listener at {url}" for url in sorted(self._addresses) if _listens(url)]
        if self._executor is not None:
            found += self._executor.left_behind
        if found:
            raise CheckFailed(f"expected nothing left, seen {', '.join(found)}")
        logs = " but for the logs" if logs_stay else ""
        return f"{len(self._processes)} processes, sockets and run directory are gone{logs}"

    def _note_processes(self) -> None:
        for child in set(psutil.Process().children()) - self._before:
            self._processes.add(child)
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes |= set(child.children(recursive=True))


def _files(directory: Path, logs_stay: bool) -> list[Path]:
    """What is still there, the directory included."""
    if not directory.exists():
        return []
    if not logs_stay:
        return [directory, *directory.iterdir()]
    return [path for path in directory.iterdir() if path.name != "logs"]


def _runs(process: psutil.Process) -> bool:
    """Whether it is there and not merely unreaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=1):
            return True
    except OSError:
        return False
