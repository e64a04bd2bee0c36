"""What has really ended an actor: Ray wraps it."""

import re

_DETAIL = "Worker exit detail: "
_UNEXPECTED_END = "Worker unexpectedly exits with a connection error code 2"
_NODE_WAS = "the actor's node was "
_NOT_INSTALLED = re.compile(r"ModuleNotFoundError: No module named '(launcher|engine)\b")
_COLOUR = re.compile(r"\x1b\[\d+m")


def cause_of(problem: BaseException) -> str:
    """One line, from the exception that waiting for an actor has raised."""
    from ray.exceptions import ActorDiedError, RayError, RayTaskError

    if isinstance(problem, RayTaskError):
        cause = problem.cause
        # One that could not be pickled is there as text only.
        is_text = cause is problem or cause is None or type(cause) is RayError
        return _last_line(str(problem)) if is_text else _in_words(cause)
    text = _COLOUR.sub("", str(problem))
    if _NOT_INSTALLED.search(text):
        return f"flotilla is not installed there: {_last_line(text)}"
    if "Owner's" in text:
        return "the Ray node of the launcher died"
    if not isinstance(problem, ActorDiedError):
        return _in_words(problem)
    if "error raised in its creation task" in text:
        return _last_line(text)
    if "its node has died" in text:
        return f"its node died: {_last_line(text).removeprefix(_NODE_WAS)}"
    detail = _last_line(text).rpartition(_DETAIL)[2]
    if detail.startswith(_UNEXPECTED_END):
        return "its process was killed or crashed"
    return detail


def _in_words(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"  # a hint is in the log


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
