"""How long the body of a request can be, and how long it may take to come."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

BYTES_PER_TOKEN = 64
"""A token of text has about 4 bytes, as escapes in JSON up to 24; a token id has up to 12."""
OVERHEAD_BYTES = 2**20
"""For everything that is no prompt."""


def default_max_body_bytes(max_model_len: int) -> int:
    """The longest body that is read: above any prompt that the context can hold."""
    return OVERHEAD_BYTES + BYTES_PER_TOKEN * max_model_len


def limited(scope: Scope, receive: Receive, limit: int, within_s: float) -> Receive:
    """`receive`, which refuses a body that is too long before it is all in memory, or too slow.

    An announced length is refused at once, what comes in chunks as soon as there is too much.

    Args:
        limit: Bytes.
        within_s: Seconds from now in which all of it must have come.
    """
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    deadline_s = asyncio.get_running_loop().time() + within_s
    num_bytes = 0
    is_complete = False

    async def receive_limited() -> Message:
        nonlocal num_bytes, is_complete
        if is_complete:  # what comes now is that the client leaves
            return await receive()
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout_at(deadline_s):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"The body was not complete after {within_s:g} s") from None
        is_complete = not message.get("more_body", False)
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise _too_large(limit)
        return message

    return receive_limited


def _too_large(limit: int) -> HTTPException:
    # Of the only kind that FastAPI lets through while it reads a body.
    return HTTPException(413, f"The body is too large: at most {limit} bytes are read")
