"""How long the body of a request can be."""

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

BYTES_PER_TOKEN = 64
"""A token of text has about 4 bytes, as escapes in JSON up to 24; a token id has up to 12."""
OVERHEAD_BYTES = 2**20
"""For everything that is no prompt."""


def max_body_bytes(max_model_len: int) -> int:
    """The longest body that is read: above any prompt that the context can hold."""
    return OVERHEAD_BYTES + BYTES_PER_TOKEN * max_model_len


def limited(scope: Scope, receive: Receive, limit: int) -> Receive:
    """`receive`, which refuses a body of more than `limit` bytes before it is all in memory.

    An announced length is refused at once, what comes in chunks as soon as there is too much.
    """
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal num_bytes
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise _too_large(limit)
        return message

    return receive_limited


def _too_large(limit: int) -> HTTPException:
    # Of the only kind that FastAPI lets through while it reads a body.
    return HTTPException(413, f"The body is too large: at most {limit} bytes are read")
