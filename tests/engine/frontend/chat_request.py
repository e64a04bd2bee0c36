"""A chat request, and the errors that answer it."""

import json
from typing import Any

import httpx2

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = BODY | {"stream": True}


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


def end_of(stream: httpx2.Response) -> dict[str, Any]:
    """The error that ends a stream."""
    *_, error, done, rest = stream.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    found: dict[str, Any] = json.loads(error.removeprefix("data: "))["error"]
    return found
