"""Where the results of a benchmark go."""

import contextlib
import os
from datetime import datetime
from pathlib import Path

from launcher.bench.results import RESULTS_NAME, Results, encode
from launcher.errors import LauncherError, Refused


class NotWritten(LauncherError):
    """What was measured cannot be kept."""


class ResultsDirectory:
    """Made before anything is measured, so that nothing is measured in vain.

    Args:
        path: Relative to the working directory, or absolute.

    Raises:
        Refused: Nothing can be written there, or there are results already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if self.results.exists():
            message = f"bench.dir holds results already: {self.results}"
            raise Refused(message, "bench.dir=... of a new one")
        self._made = [each for each in (path, *path.parents) if not each.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            self._refuse(problem.strerror or str(problem))
        if not os.access(path, os.W_OK):
            self._refuse("Permission denied")

    @classmethod
    def chosen(cls, path: str | None, name: str, now: datetime) -> "ResultsDirectory":
        """The one that `bench.dir` names, or one of its own for each benchmark."""
        if path is not None:
            return cls(Path(path).expanduser())
        return cls(Path("outputs", "bench", f"{now:%Y-%m-%d_%H-%M-%S}-{name}"))

    @property
    def results(self) -> Path:
        return self._path / RESULTS_NAME

    def write(self, results: Results) -> None:
        """Writes all or nothing.

        Raises:
            NotWritten: The disk is full, or the directory is gone and cannot be made again.
        """
        partial = self.results.with_suffix(".partial")
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(encode(results))
            partial.replace(self.results)
        except OSError as problem:
            with contextlib.suppress(OSError):
                partial.unlink()
            self.remove()
            raise NotWritten(
                f"the results cannot be written: {self.results} ({problem.strerror})",
                "bench.dir=DIR on a disk with room",
            ) from problem

    def remove(self) -> None:
        """Removes what was made, if there is nothing in it."""
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _refuse(self, why: str) -> None:
        self.remove()
        raise Refused(f"bench.dir cannot be written: {self._path} ({why})", "bench.dir=DIR")
