"""OpenAI's error body for everything that goes wrong, whoever notices it."""

import logging

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.frontend import refusals
from engine.frontend.current import REQUEST_ID
from engine.frontend.errors import (
    ApiError,
    BodyTooLarge,
    BodyTooLate,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
)

logger = logging.getLogger(__name__)

_MAX_QUOTED_PATH = 256


def error_response(problem: ApiError) -> Response:
    return Response(
        msgspec.json.encode(problem.body()),
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/json",
    )


def answer_errors_as_openai(app: FastAPI) -> None:
    """Lets an app answer its own errors, FastAPI's and Starlette's alike."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_defect)


async def _on_api_error(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    return _answer(problem)


async def _on_validation_error(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, RequestValidationError)
    return _answer(refusals.explain(problem.errors()))


async def _on_http_exception(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    call = f"{request.method} {request.scope['path'][:_MAX_QUOTED_PATH]}"
    error: InvalidRequest
    match problem.status_code:
        case 404:
            error = NotFound(f"Unknown path: {call}. See /docs.", code="unknown_url")
        case 405:
            methods = set((problem.headers or {}).get("Allow", "").split(", "))
            allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
            error = MethodNotAllowed(f"Method not allowed: {call}. Allowed: {allowed}.", allowed)
        case 408:
            error = BodyTooLate(f"{problem.detail}.", code="body_too_late")
        case 413:
            error = BodyTooLarge(f"{problem.detail}.", code="body_too_large")
        case 400:  # FastAPI's parser has failed, and does not say how
            message = (
                "The body cannot be read as JSON: it is not in UTF-8, nested too deeply, or has a"
                " number of thousands of digits."
            )
            error = InvalidRequest(message, code="invalid_body")
        case status:
            error = InvalidRequest(f"{problem.detail}.", code="invalid_body")
            error.status = status
    return _answer(error)


def _answer(problem: ApiError) -> Response:
    if isinstance(problem, InvalidRequest):  # what else can go wrong is told elsewhere
        what = ascii(problem.message)[1:-1]  # it may repeat what a client wrote
        logger.info("request %s: refused with %s: %s", REQUEST_ID.get(), problem.status, what)
    return error_response(problem)


async def _on_defect(_request: Request, _problem: Exception) -> Response:
    return error_response(InternalError())  # Starlette goes on to raise it: the gate logs it
