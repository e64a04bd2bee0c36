"""Errors that clients see: each knows its HTTP status and becomes OpenAI's error body."""

from collections.abc import Mapping

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class ApiError(Exception):
    """A request that gets no answer, or only the first part of one.

    Attributes:
        param: The parameter at fault, as OpenAI names it (`messages[0].content`).
        code: For programs; None where the type says it all.
    """

    status = 500
    type = "server_error"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> ErrorBody:
        return ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))


class InvalidRequest(ApiError):
    """The client can mend it."""

    status = 400
    type = "invalid_request_error"


class NotFound(InvalidRequest):
    status = 404


class MethodNotAllowed(InvalidRequest):
    status = 405

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message, code="method_not_allowed")
        self.headers = {"Allow": allowed}


class BodyTooLarge(InvalidRequest):
    """The rest of the body is not read, so the connection is of no more use."""

    status = 413
    headers = {"Connection": "close"}


class HeadTooLarge(InvalidRequest):
    """What comes before or around a body does not end."""

    status = 431

    def __init__(self, limit: int) -> None:
        message = f"Path and headers are too large: at most {limit} bytes are read."
        super().__init__(message, code="head_too_large")


class UnsupportedContentType(InvalidRequest):
    status = 415

    def __init__(self) -> None:
        message = "The body must be JSON, sent with 'Content-Type: application/json'."
        super().__init__(message, code="unsupported_content_type")


class Unauthorized(InvalidRequest):
    """No key, or a wrong one."""

    status = 401
    headers = {"WWW-Authenticate": "Bearer"}

    def __init__(self, is_given: bool) -> None:
        what = "Incorrect API key provided." if is_given else "You didn't provide an API key."
        message = f"{what} It is sent as 'Authorization: Bearer KEY'."
        super().__init__(message, code="invalid_api_key")


class BodyTooLate(InvalidRequest):
    """The client has begun a request and does not send the rest."""

    status = 408
    headers = {"Connection": "close"}


class RequestTimedOut(ApiError):
    """The answer takes longer than any is allowed to."""

    status = 504

    def __init__(self, limit_s: float) -> None:
        message = (
            f"The answer was not complete after {limit_s:g} s (frontend.request_timeout_s):"
            " ask for fewer tokens."
        )
        super().__init__(message, code="request_timeout")


class SlowReader(ApiError):
    """The client does not read the stream, which waits in memory. It does not see this either."""

    status = 499

    def __init__(self) -> None:
        super().__init__("The client reads too slowly.", code="slow_reader")


class EngineFailed(ApiError):
    """An engine core could not answer, and says why."""


class Unavailable(ApiError):
    """Not now: another try may succeed."""

    status = 503
    headers = {"Retry-After": "1"}


class Overloaded(Unavailable):
    """A limit of what waits or runs at the same time is reached."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="overloaded")


class Draining(Unavailable):
    """This deployment is about to end; another one may listen on the same address soon."""

    headers = {**Unavailable.headers, "Connection": "close"}


class ClientLeft(ApiError):
    """Nobody reads the answer. The status is nginx's, for the log."""

    status = 499

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class InternalError(ApiError):
    """A defect of this program."""

    def __init__(self) -> None:
        super().__init__("Internal error; the log tells more, under this X-Request-Id.")
