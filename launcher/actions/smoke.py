"""`action=smoke`: brings the deployment up, asks every front end something, and ends it again."""

import asyncio
import http.client
import json
import socket
from typing import Any

from launcher.actions.serve import Serving
from launcher.errors import LauncherError
from launcher.executors.base import Executor
from launcher.plan import DeploymentPlan

_ANSWER_S = 120.0
"""Deadline of each answer: a few tokens, on the slowest machine that is worth a smoke test."""
_NUM_TOKENS = 8


class SmokeFailed(LauncherError):
    """The deployment came up, but does not do what it should."""


def smoke(plan: DeploymentPlan, start_deadline_s: float) -> int:
    """Whether the deployment starts, answers and ends.

    Returns:
        0: it does.

    Raises:
        LauncherError: It does not; the message says what went wrong.
    """

    def check(executor: Executor) -> None:
        for address in executor.private_addresses:
            _check_front_end(plan, _UnixConnection(address))

    return asyncio.run(Serving(plan, check).run(start_deadline_s))


def _check_front_end(plan: DeploymentPlan, connection: http.client.HTTPConnection) -> None:
    """Every rank gives the same greedy answer, and the deployment is what was planned.

    Raises:
        SmokeFailed: It is not so.
    """
    ready = _ask(connection, "GET", "/ready")
    if ready["ready_ranks"] != list(range(plan.dp)):
        raise SmokeFailed(f"ready ranks are {ready['ready_ranks']}, planned were {plan.dp}")
    told = _ask(connection, "GET", "/plan")
    if told["plan"]["digest"] != plan.digest or told["drift"]:
        raise SmokeFailed(f"the deployment is not what was planned: {told['drift']}")
    question = {
        "model": plan.settings.model_name,
        "prompt": [1, 2, 3],
        "max_tokens": _NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    texts = set()
    for _ in range(plan.dp):  # ties in load are broken in turn, so that every rank gets one
        answer = _ask(connection, "POST", "/v1/completions", question)
        if answer["usage"]["completion_tokens"] != _NUM_TOKENS:
            raise SmokeFailed(f"{_NUM_TOKENS} tokens were wanted: {answer['usage']}")
        texts.add(answer["choices"][0]["text"])
    if len(texts) != 1:
        raise SmokeFailed(f"greedy answers to one prompt differ: {sorted(texts)}")


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> dict[str, Any]:
    try:
        connection.request(
            method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException) as problem:
        raise SmokeFailed(f"no answer from {method} {path}: {problem!r}") from problem
    if response.status != 200:
        raise SmokeFailed(f"{method} {path} answered {response.status}: {answer}")
    assert isinstance(answer, dict)
    return answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
