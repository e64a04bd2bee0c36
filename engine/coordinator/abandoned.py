"""The run directory of a launcher that has died: nobody else is left to remove it."""

import fcntl
import os
import shutil
from pathlib import Path


def remove_if_abandoned(run_directory: Path, waits: bool) -> None:
    """Removes a run directory whose lock nobody holds, as a launcher that lives does.

    Args:
        waits: Until nobody holds the lock: of a launcher that dies, pipes may close before it.
    """
    try:
        lock = os.open(run_directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(run_directory / "lock")):  # no newer launcher's
            shutil.rmtree(run_directory, ignore_errors=True)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(lock)
