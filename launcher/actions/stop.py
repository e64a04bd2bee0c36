"""`action=stop`: lets a running deployment drain, and waits until it has ended."""

import sys
import time
from collections.abc import Iterator

from engine.wording import counted
from launcher.control import Answer, Ended, Progress, Stage, Stop, Stopping
from launcher.control_client import ControlClient, NoAnswer
from launcher.errors import LauncherError

_MARGIN_S = 15.0
"""Beyond the launcher's own deadlines: what it kills gets a while to go, and a backend to let go of
what it held."""


class StoppedBadly(LauncherError):
    """The deployment has ended, but not as it should."""


def stop(name: str, force: bool) -> int:
    """Stops a deployment and shows how it ends.

    Returns:
        0: it has ended, and no request was cut off.

    Raises:
        Refused: No deployment of this name runs.
        NoAnswer: It does not end in time, or its launcher says nothing any more.
        StoppedBadly: It ended with a failure, or requests were cut off.
    """
    with ControlClient(name) as client:
        answers = client.ask(Stop(force))
        asked = next(answers, None)
        if not isinstance(asked, Stopping):
            raise NoAnswer(f"{name}: ended while it was asked")
        limit_s = asked.stop_s + _MARGIN_S + (0.0 if force else asked.drain_s)
        deadline = time.monotonic() + limit_s
        _say(_opening(name, asked, force))
        ended = _follow(answers, deadline)
        if ended is None and time.monotonic() >= deadline:
            raise NoAnswer(f"{name}: not ended after {limit_s:g} s", "stop.force=true")
        if not client.wait_until_gone(_MARGIN_S):
            rest = "its processes are not" if ended is not None else "but says nothing any more"
            message = f"{name}: launcher pid {asked.pid} is still there, {rest}"
            raise NoAnswer(message, f"kill -9 {asked.pid} ends it")
    if ended is None:
        raise StoppedBadly(f"{name}: ended without a word: its launcher was killed, or has failed")
    _say(_verdict(name, asked, ended))
    return 0


def _opening(name: str, asked: Stopping, force: bool) -> str:
    stopping = f"stopping {name} (launcher pid {asked.pid})"
    if force:
        return f"{stopping} at once"
    match asked.stage:
        case Stage.starting:
            return f"{stopping} while it starts"
        case Stage.serving:
            return f"{stopping}: draining, at most {asked.drain_s:g} s"
        case Stage.draining | Stage.ending:
            return f"{stopping}: it is {asked.stage.value} already"


def _follow(answers: Iterator[Answer], deadline: float) -> Ended | None:
    """Shows what goes on; None: no word of the end, before the deadline or at all."""
    told = ""
    for answer in answers:
        match answer:
            case Ended():
                return answer
            case Progress(Stage.draining, num_requests):
                line = f"draining: {counted(num_requests, 'request')} in flight"
            case Progress(Stage.ending):
                line = "ending its processes"
            case _:
                line = told
        if line != told:
            _say(line)
        told = line
        if time.monotonic() >= deadline:
            break
    return None


def _verdict(name: str, asked: Stopping, ended: Ended) -> str:
    """How it ended.

    Raises:
        StoppedBadly: Not well.
    """
    if 0 < ended.exit_code < 128:
        raise StoppedBadly(f"{name}: ended with a failure: {ended.reason}")
    if ended.num_cut_off:
        raise StoppedBadly(f"{name}: ended, {counted(ended.num_cut_off, 'request')} cut off")
    if ended.exit_code == 0:
        return f"{name}: drained, and ended"
    return f"{name}: ended" + (" while it started" if asked.stage is Stage.starting else "")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
