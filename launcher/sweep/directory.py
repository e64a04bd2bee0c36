"""A sweep's directory: its rows, and a directory for each job."""

import fcntl
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path

import msgspec

from launcher.bench.directory import OutputDirectory, stamped
from launcher.bench.results import RESULTS_NAME, Results
from launcher.bench.results import decode as decode_results
from launcher.errors import Refused
from launcher.sweep.rows import SWEEP_NAME, SWEEP_VERSION, Sweep, decode, encode

LOG_NAME = "job.log"
_OF_A_JOB = re.compile(r"job-\d+")
_POLL_S = 0.1
_KEY = "sweep.dir"


class SweepDirectory(OutputDirectory):
    """Held by one sweep at a time, and by the job that it runs.

    Args:
        wait_s: Seconds that whoever holds it gets to end: the job of a sweep that was killed.

    Attributes:
        lock: Its descriptor; whoever has it open holds the directory.

    Raises:
        Refused: Nothing can be written there, or it is held.
    """

    def __init__(self, path: Path, wait_s: float) -> None:
        super().__init__(path, _KEY)
        self.lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            self._take(wait_s)
        except BaseException:
            self.close()
            raise

    @classmethod
    def chosen(cls, path: str | None, name: str, now: datetime, wait_s: float) -> "SweepDirectory":
        """The one that `sweep.dir` names, or one of its own for each sweep."""
        if path is not None:
            return cls(Path(path).expanduser(), wait_s)
        return cls(Path("outputs", "sweep", stamped(name, now)), wait_s)

    def close(self) -> None:
        """Lets go of it, and removes it if there is nothing in it."""
        os.close(self.lock)
        self.remove()

    def read(self) -> Sweep | None:
        """The sweep so far; None: there is none.

        Raises:
            Refused: What is there cannot be gone on with.
        """
        path = self.path / SWEEP_NAME
        hint = f"{_KEY}=... of a new one"
        try:
            data = path.read_bytes()
            version = msgspec.json.decode(data, type=_Version).version
            if version != SWEEP_VERSION:
                message = f"{_KEY}: {path} has version {version} of its form"
                raise Refused(f"{message}, this launcher knows {SWEEP_VERSION}", hint)
            sweep = decode(data)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise Refused(f"{_KEY} cannot be read: {path} ({problem.strerror})", hint) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise Refused(f"{_KEY}: {path} is no {SWEEP_NAME} ({problem})", hint) from None
        if not all(_OF_A_JOB.fullmatch(row.directory) for row in sweep.rows):
            raise Refused(f"{_KEY}: {path} names directories that are none of its own", hint)
        return sweep

    def write_sweep(self, sweep: Sweep) -> None:
        self.write(SWEEP_NAME, encode(sweep))

    def for_job(self, name: str) -> Path:
        """The directory of a job that is about to start, without what an earlier start has left."""
        path = self.path / name
        path.mkdir(exist_ok=True)
        for left in (RESULTS_NAME, LOG_NAME):
            (path / left).unlink(missing_ok=True)
        return path

    def results_of(self, name: str) -> Results | None:
        """None: the job has left none."""
        try:
            return decode_results((self.path / name / RESULTS_NAME).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _take(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        has_told = False
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    break
            if not has_told:
                sys.stderr.write(
                    f"{self.path} is in use, by another sweep or by the last job of one that was"
                    f" killed: waiting up to {wait_s:.0f} s\n"
                )
                has_told = True
            time.sleep(_POLL_S)
        raise Refused(f"{_KEY} is in use by another sweep: {self.path}", f"{_KEY}=... of a new one")


class _Version(msgspec.Struct):
    version: int
