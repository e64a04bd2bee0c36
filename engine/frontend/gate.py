"""The outermost layer of the HTTP server: who gets in, and under which name."""

import logging
import re
import secrets
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.frontend.admission import Admission
from engine.frontend.body_limit import limited
from engine.frontend.error_responses import error_response
from engine.frontend.errors import Draining

logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""Of the request that the current task answers."""
_VALID_ID = re.compile(rb"[\x20-\x7e]{1,128}")


class Gate:
    """Gives each request an id, takes a new POST only when the front end does, a HEAD as a GET.

    A client's own `X-Request-Id` is kept if it is printable ASCII of up to 128 characters; the
    answer and the log lines name the request by it.

    Args:
        max_body_bytes: A longer body is not read to its end.
    """

    def __init__(self, app: ASGIApp, admission: Admission, max_body_bytes: int) -> None:
        self._app = app
        self._admission = admission
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)  # each request has a task of its own, and so its own context
        header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        receive = limited(scope, receive, self._max_body_bytes)
        if scope["method"] == "HEAD":  # in the server's own scope it stays: it leaves the body out
            scope = {**scope, "method": "GET"}
        try:
            if scope["method"] == "POST":
                with self._admission.entered():
                    await self._app(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except Draining as refusal:
            await error_response(refusal)(scope, receive, send_with_id)
        except Exception:  # answered with status 500 already
            logger.exception("request %s failed", request_id)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _VALID_ID.fullmatch(value):
            return str(value, "ascii")
    return f"req-{secrets.token_hex(16)}"
