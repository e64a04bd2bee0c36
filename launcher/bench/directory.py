"""Where results are written: of a benchmark, of a sweep."""

import contextlib
import os
from datetime import datetime
from pathlib import Path

from launcher.bench.results import RESULTS_NAME, Results, encode
from launcher.errors import LauncherError, Refused


class NotWritten(LauncherError):
    """What was measured cannot be kept."""


class OutputDirectory:
    """Made before anything is measured, so that nothing is measured in vain.

    Args:
        path: Relative to the working directory, or absolute.
        key: The option that names it.

    Raises:
        Refused: Nothing can be written there.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._made = [each for each in (path, *path.parents) if not each.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            self._refuse(problem.strerror or str(problem))
        if not os.access(path, os.W_OK):
            self._refuse("Permission denied")

    def write(self, name: str, content: bytes) -> None:
        """Writes all or nothing.

        Raises:
            NotWritten: The disk is full, or the directory is gone and cannot be made again.
        """
        partial = (self.path / name).with_suffix(".partial")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(self.path / name)
        except OSError as problem:
            with contextlib.suppress(OSError):
                partial.unlink()
            self.remove()
            raise NotWritten(
                f"the results cannot be written: {self.path / name} ({problem.strerror})",
                f"{self.key}=DIR on a disk with room",
            ) from problem

    def remove(self) -> None:
        """Removes what was made, if there is nothing in it."""
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _refuse(self, why: str) -> None:
        self.remove()
        raise Refused(f"{self.key} cannot be written: {self.path} ({why})", f"{self.key}=DIR")


class ResultsDirectory(OutputDirectory):
    """Of one benchmark.

    Raises:
        Refused: Nothing can be written there, or there are results already.
    """

    def __init__(self, path: Path) -> None:
        if (path / RESULTS_NAME).exists():
            message = f"bench.dir holds results already: {path / RESULTS_NAME}"
            raise Refused(message, "bench.dir=... of a new one")
        super().__init__(path, "bench.dir")

    @classmethod
    def chosen(cls, path: str | None, name: str, now: datetime) -> "ResultsDirectory":
        """The one that `bench.dir` names, or one of its own for each benchmark."""
        if path is not None:
            return cls(Path(path).expanduser())
        return cls(Path("outputs", "bench", stamped(name, now)))

    @property
    def results(self) -> Path:
        return self.path / RESULTS_NAME

    def write_results(self, results: Results) -> None:
        self.write(RESULTS_NAME, encode(results))


def stamped(name: str, now: datetime) -> str:
    """`DATE_TIME-NAME`, a directory's name that sorts by time."""
    return f"{now:%Y-%m-%d_%H-%M-%S}-{name}"
