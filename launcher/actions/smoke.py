"""`action=smoke`: brings the deployment up, asks every front end something, and ends it again."""

import asyncio
import http.client
import json
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from engine.wording import counted
from launcher.actions.serve import Serving
from launcher.errors import LauncherError, report
from launcher.executors.base import Executor, Means
from launcher.plan import DeploymentPlan

_ANSWER_S = 120.0
"""Deadline of each answer: a few tokens, on the slowest machine that is worth a smoke test."""
_PROMPT = [1, 2, 3]
_NUM_TOKENS = 8
_MAX_SHOWN = 40
"""Characters of an answer in a line."""


class SmokeFailed(LauncherError):
    """The deployment came up, but does not do what it should."""


def smoke(plan: DeploymentPlan, means: Means) -> int:
    """Whether the deployment starts, answers and ends: a line for each check, then the verdict.

    Returns:
        0 if it does, else the exit code of what went wrong, which is written too.
    """
    test = SmokeTest(plan)
    try:
        asyncio.run(Serving(plan, means, test.run).run())
    except LauncherError as problem:
        exit_code = report(problem)
        sys.stderr.write(f"smoke test failed after {counted(test.num_passed, 'passed check')}\n")
        return exit_code
    sys.stderr.write(f"smoke test passed: {counted(test.num_passed, 'check')}\n")
    return 0


class SmokeTest:
    """What is asked of a deployment, and what has to be seen.

    Attributes:
        num_passed: Checks that went well.
    """

    def __init__(self, plan: DeploymentPlan) -> None:
        self._plan = plan
        self.num_passed = 0

    def run(self, executor: Executor, say: Callable[[str], None]) -> None:
        """Asks every front end.

        Raises:
            SmokeFailed: Something else was seen.
        """
        for index, address in enumerate(executor.private_addresses):
            front_end = f"frontend-{index}"
            try:
                for asked, seen in self._checks(_UnixConnection(address)):
                    self.num_passed += 1
                    say(f"check {front_end}: {asked}: {seen}")
            except SmokeFailed as problem:
                raise SmokeFailed(f"{front_end}: {problem}") from problem

    def _checks(self, connection: http.client.HTTPConnection) -> Iterator[tuple[str, str]]:
        """What was asked and what was seen: the plan carried out, and equal greedy answers."""
        plan = self._plan
        ready = _ask(connection, "GET", "/ready")["ready_ranks"]
        if ready != list(range(plan.dp)):
            raise SmokeFailed(f"ready ranks are {ready}, planned were {plan.dp}")
        yield "GET /ready", f"{counted(plan.dp, 'rank')} ready, as planned"
        told = _ask(connection, "GET", "/plan")
        if told["plan"]["digest"] != plan.digest or told["drift"]:
            raise SmokeFailed(f"the deployment is not what was planned: {told['drift']}")
        yield "GET /plan", f"digest {plan.digest[:12]} and no drift, as planned"
        first = None
        for _ in range(plan.dp):  # ties in load are broken in turn, so that every rank gets one
            text = self._complete(connection)
            if first not in (None, text):
                raise SmokeFailed(f"greedy answers to one prompt differ: {[first, text]}")
            again = "" if first is None else ", the same again"
            first = text
            yield f"{_NUM_TOKENS} greedy tokens after {_PROMPT}", f"{text[:_MAX_SHOWN]!a}{again}"

    def _complete(self, connection: http.client.HTTPConnection) -> str:
        question = {
            "model": self._plan.settings.model_name,
            "prompt": _PROMPT,
            "max_tokens": _NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = _ask(connection, "POST", "/v1/completions", question)
        if answer["usage"]["completion_tokens"] != _NUM_TOKENS:
            raise SmokeFailed(f"{_NUM_TOKENS} tokens were wanted: {answer['usage']}")
        return str(answer["choices"][0]["text"])


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
