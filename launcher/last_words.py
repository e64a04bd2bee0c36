"""What a log says of the end of its process: pure."""

from collections.abc import Sequence

from engine.logs import is_routine

_MAX_LINES = 20


def last_words(log: Sequence[str], reason: str = "") -> str:
    """The last warnings, errors and tracebacks of a log, an indented line each.

    Args:
        log: Its last lines, many more than are shown.
        reason: Why the process ended, if it has.
    """
    telling = [line for line in log if not is_routine(line)][-_MAX_LINES:]
    if not telling:
        guess = "; killed from outside?" if reason == "killed by SIGKILL" else ""
        found = "no warning and no error in its log" if log else "nothing of its log is here"
        telling = [f"({found}{guess})"]
    return "".join(f"\n    {line}" for line in telling)
