"""The request that the current task answers: each has a task, and so a context, of its own."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""Its name, in answers and log lines."""
STREAM_ERROR: ContextVar[str] = ContextVar("stream_error")
"""Code of the error that ended its stream; empty while none has."""
