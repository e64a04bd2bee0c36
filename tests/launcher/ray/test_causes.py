"""What Ray raises when actors end, and what is made of it."""

import os
import signal
import threading
from typing import Any

import pytest

from launcher.executors.ray.causes import cause_of
from tests.launcher.ray.clusters import DEADLINE_S

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


class Unpicklable(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Ending:
    """Ends in one way or another."""

    def __init__(self, fails_at_once: bool = False) -> None:
        if fails_at_once:
            raise ValueError("no such thing: 7")

    def end(self, way: str) -> None:
        match way:
            case "raises":
                try:
                    raise KeyError("inner")
                except KeyError as inner:
                    raise ValueError("no such thing: 7\nhint: 8") from inner
            case "unpicklable":
                raise Unpicklable("no such thing: 7")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crashed":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exits":
                os._exit(3)
            case "leaves":
                raise SystemExit(3)


@pytest.mark.parametrize(
    ("way", "cause"),
    [
        ("raises", "ValueError: no such thing: 7\nhint: 8"),
        ("unpicklable", f"{__name__}.Unpicklable: no such thing: 7"),
        ("killed", "its process was killed or crashed"),
        ("crashed", "its process was killed or crashed"),
        ("exits", "its process was killed or crashed"),
        ("leaves", "Worker exits unexpectedly. Worker exits with an exit code 3."),
        ("constructor", "ValueError: no such thing: 7"),
    ],
)
def test_the_cause_is_what_has_happened(onlooker, way, cause):
    def end() -> BaseException | None:
        import ray

        untyped: Any = ray
        actor = untyped.remote(Ending).options(num_cpus=0).remote(way == "constructor")
        try:
            ray.get(actor.end.remote(way), timeout=DEADLINE_S)
        except Exception as problem:
            return problem
        return None

    problem = onlooker.session.call(end)
    assert problem is not None
    assert cause_of(problem) == cause
