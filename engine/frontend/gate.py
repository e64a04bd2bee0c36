"""The outermost layer of the HTTP server: who gets in, under which name, and what is counted."""

import logging
import re
import secrets
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.frontend.admission import Admission
from engine.frontend.body_limit import limited
from engine.frontend.current import REQUEST_ID, STREAM_ERROR
from engine.frontend.error_responses import error_response
from engine.frontend.errors import Unauthorized, Unavailable
from engine.frontend.key_check import KeyCheck
from engine.metrics import HTTP_RECEIVED, HTTP_REQUEST_TIME, HTTP_REQUESTS, HTTP_SENT, Metrics

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(rb"[\x20-\x7e]{1,128}")
OPEN_PATHS = ("/health", "/ready")
"""For whoever looks after processes and has no key."""
_OTHER_ROUTE = "other"


class Gate:
    """Gives each request an id, asks for a key, takes a new POST only when the front end does.

    A HEAD is answered as a GET.

    A client's own `X-Request-Id` is kept if it is printable ASCII of up to 128 characters; the
    answer and the log lines name the request by it.

    Args:
        keys: Without one of them only `/health` and `/ready` answer, and everything on the
            private unix sockets, which only the user can reach that runs the deployment.
        max_body_bytes: A longer body is not read to its end.
        body_s: Seconds in which a body must have come.
        routes: Paths that are counted each by itself; all others together.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        metrics: Metrics,
        keys: KeyCheck,
        max_body_bytes: int,
        body_s: float,
        routes: Collection[str],
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        self._keys = keys
        self._max_body_bytes, self._body_s = max_body_bytes, body_s
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)
        STREAM_ERROR.set("")
        exchange = _Exchange(request_id, send, self._metrics)
        receive = self._counted(limited(scope, receive, self._max_body_bytes, self._body_s))
        start_s = time.monotonic()
        if scope["method"] == "HEAD":  # in the server's own scope it stays: it leaves the body out
            scope = {**scope, "method": "GET"}
        try:
            self._check_key(scope)
            if scope["method"] == "POST":
                with self._admission.entered():
                    await self._app(scope, receive, exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except (Unauthorized, Unavailable) as refusal:
            await error_response(refusal)(scope, receive, exchange.send)
        except Exception:  # answered with status 500 already
            logger.exception("request %s failed", request_id)
        finally:
            route = scope["path"] if scope["path"] in self._routes else _OTHER_ROUTE
            labels = (route, exchange.status, STREAM_ERROR.get())
            self._metrics.add(HTTP_REQUESTS, labels=labels)
            seconds = time.monotonic() - start_s
            self._metrics.observe(HTTP_REQUEST_TIME, seconds, labels=(route,))

    def _check_key(self, scope: Scope) -> None:
        if self._keys.is_open or scope["path"] in OPEN_PATHS or _is_private(scope):
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not self._keys.admits(given):
            raise Unauthorized(is_given=bool(given))

    def _counted(self, receive: Receive) -> Receive:
        async def receive_counted() -> Message:
            message = await receive()
            self._metrics.add(HTTP_RECEIVED, len(message.get("body", b"")))
            return message

        return receive_counted


class _Exchange:
    """Sends one response, with the request's id in its header.

    Attributes:
        status: As a label: `200`, or `none` while nothing has been sent.
    """

    __slots__ = ("_metrics", "_request_id", "_send", "status")

    def __init__(self, request_id: str, send: Send, metrics: Metrics) -> None:
        self._request_id = request_id
        self._send = send
        self._metrics = metrics
        self.status = "none"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
            header = (b"x-request-id", self._request_id.encode())
            message["headers"] = [*message["headers"], header]
        else:
            self._metrics.add(HTTP_SENT, len(message.get("body", b"")))
        await self._send(message)


def _is_private(scope: Scope) -> bool:
    """Whether it came by a unix socket, which has a path and no port."""
    server = scope.get("server")
    return server is not None and server[1] is None


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _VALID_ID.fullmatch(value):
            return str(value, "ascii")
    return f"req-{secrets.token_hex(16)}"
