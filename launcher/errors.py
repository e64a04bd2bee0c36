"""Errors of the launcher: what ends it, with which exit code, and what the user can do."""

import sys
from collections.abc import Iterable


class LauncherError(Exception):
    """Ends the launcher.

    Attributes:
        exit_code: Of the launcher process.
        hint: An override or a command that works, or "".
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Refused(LauncherError):
    """Nothing was started: config, placement, a taken port or name, a missing model."""

    exit_code = 2


class StartFailed(LauncherError):
    """A process failed or did not answer in time while the deployment started."""


class DeploymentFailed(LauncherError):
    """A process of the running deployment ended."""


class Interrupted(LauncherError):
    """A signal ended the launcher before it was done."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number


def report(error: LauncherError) -> int:
    """Writes an error and its hint to stderr; returns its exit code."""
    sys.stderr.write(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    return error.exit_code


def warn(lines: Iterable[str]) -> None:
    """Writes warnings to stderr, a line each."""
    for line in lines:
        sys.stderr.write(f"warning: {line}\n")
