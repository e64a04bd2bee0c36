"""A running deployment's private directory: sockets, logs, the lock that makes its name unique."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Self

from launcher.errors import Refused

_LONGEST_SOCKET_NAME = len("frontend-999.4194304.requests")
_MAX_SOCKET_PATH = 107
"""Source: unix(7), sun_path is 108 bytes with its end."""
_GLANCE_S = 0.1
"""Whoever asks whether a lock is held takes it for an instant: a taker tries again for so long."""


class RunDirectory:
    """`<runtime directory>/flotilla/<name>`, mode 0700, locked from `acquire` to `remove`."""

    def __init__(self, name: str) -> None:
        self.path = _base() / name
        self._name = name
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def acquire(self) -> None:
        """Makes the directory, clearing what a killed deployment of this name has left.

        Raises:
            Refused: A running deployment has the name, or the place is not fit for it.
        """
        self._check_path()
        while self._lock is None:
            _make_private(self.path.parent)
            _make_private(self.path)
            self._lock = self._try_lock()
        for entry in self.path.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.logs.mkdir(mode=0o700)

    def remove(self, keep_logs: bool) -> None:
        """Removes everything, or all but the logs. Safe to call twice, or before `acquire`."""
        if self._lock is None:
            return
        if keep_logs:
            for entry in self.path.iterdir():
                if entry != self.logs:
                    entry.unlink()
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def _try_lock(self) -> int | None:
        """The lock's descriptor; None if its file vanished meanwhile and must be made anew."""
        path = self.path / "lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        deadline = time.monotonic() + _GLANCE_S
        while not (is_ours := _take(lock, fcntl.LOCK_EX)) and time.monotonic() < deadline:
            time.sleep(_GLANCE_S / 10)
        if not is_ours:
            holder = os.read(lock, 32).decode().strip() or "unknown"
            os.close(lock)
            raise Refused(
                f"name is in use by a running deployment: {self._name} (launcher pid {holder})",
                f"name={self._name}-2 frontend.port=0, or action=stop name={self._name} to end it",
            )
        try:
            is_current = path.stat().st_ino == os.fstat(lock).st_ino
        except FileNotFoundError:
            is_current = False
        if not is_current:
            os.close(lock)
            return None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock

    def _check_path(self) -> None:
        length = len(os.fsencode(self.path)) + 1 + _LONGEST_SOCKET_NAME
        if length > _MAX_SOCKET_PATH:
            raise Refused(
                f"path of the run directory is too long for socket files: {self.path}",
                "name=... with a shorter name, or XDG_RUNTIME_DIR set to a shorter directory",
            )


class Holder:
    """The launcher that holds a run directory, seen from outside.

    Attributes:
        path: Of the run directory.
        pid: Of the launcher, or `unknown`.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.pid = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        self._lock = lock

    @classmethod
    def find(cls, name: str) -> Self | None:
        """Whoever runs the deployment; None: nobody does. To be closed."""
        path = _base() / name
        try:
            if path.parent.lstat().st_uid != os.getuid():  # made for us to fall into
                return None
            lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        holder = cls(path, lock)
        if holder.is_there():
            return holder
        holder.close()
        return None

    def is_there(self) -> bool:
        """Whether it has not ended yet."""
        if not _take(self._lock, fcntl.LOCK_SH):
            return True
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        os.close(self._lock)


def running_names() -> list[str]:
    """The names of this user's deployments that run on this machine."""
    try:
        names = sorted(os.listdir(_base()))
    except OSError:
        return []
    found = {name: Holder.find(name) for name in names}
    for holder in found.values():
        if holder is not None:
            holder.close()
    return [name for name, holder in found.items() if holder is not None]


def _take(lock: int, kind: int) -> bool:
    """Takes a lock if that needs no waiting; whether it did."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "flotilla"
    return Path(tempfile.gettempdir()) / f"flotilla-{os.getuid()}"


def _make_private(path: Path) -> None:
    """Makes a directory of mode 0700, or makes sure that the one there is ours alone."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as problem:
        raise Refused(
            f"run directory cannot be made: {path} ({problem.strerror})",
            "set XDG_RUNTIME_DIR or TMPDIR to a directory of yours",
        ) from problem
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Refused(
            f"run directory belongs to somebody else: {path}",
            "set XDG_RUNTIME_DIR or TMPDIR to a directory of yours",
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
