"""What has really ended an actor: Ray wraps it."""

import re

_DETAIL = re.compile(r"Worker exit detail: (?P<detail>[^.]*)")
_UNEXPECTED_END = "Worker unexpectedly exits with a connection error code 2"
_NODE_WAS = "the actor's node was "
_COLOUR = re.compile(r"\x1b\[\d+m")


def cause_of(problem: BaseException) -> str:
    """One line, from the exception that waiting for an actor has raised."""
    from ray.exceptions import ActorDiedError, RayTaskError

    if isinstance(problem, RayTaskError):
        cause = problem.cause
        # One that could not be pickled is there as text only.
        return _last_line(str(problem)) if cause is problem or cause is None else _in_words(cause)
    text = _COLOUR.sub("", str(problem))
    if not isinstance(problem, ActorDiedError):
        return _in_words(problem)
    if "error raised in its creation task" in text:
        return _last_line(text)
    if "its node has died" in text:
        return f"its node died: {_last_line(text).removeprefix(_NODE_WAS)}"
    detail = _DETAIL.search(text)
    if detail is None:
        return _last_line(text)
    if detail["detail"] == _UNEXPECTED_END:
        return "its process was killed or crashed"
    return detail["detail"]


def _in_words(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
