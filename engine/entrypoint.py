"""Where every process starts: `python -m engine.entrypoint FD`, FD being its lifeline."""

import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

import msgspec
import setproctitle

from engine import logs
from engine.access import Access
from engine.config import Found, ProcessSpec, Role, Settings
from engine.errors import EngineError
from engine.lifeline import Ending, Lifeline
from engine.transport import Keys

logger = logging.getLogger("engine.entrypoint")  # its own name is __main__

MAX_OPEN_FILES = 65536
SIGNALS_OF_LAUNCHER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""To the whole group (Ctrl-C, a terminal that hangs up, a service manager) they are the launcher's
to answer: it ends its children by their lifelines.
"""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher writes into a lifeline."""

    process: ProcessSpec
    settings: Settings
    coordinator_endpoint: str
    incarnation: int
    listen_fds: tuple[int, ...] = ()
    """Listening sockets that a front end inherits."""
    keys: Keys | None = None
    """Of the deployment, if it has processes on other machines."""
    access: Access = Access()
    """For a front end: who may use it."""
    ports: tuple[int, ...] = ()
    """TCP ports on which coordinator and front ends listen for other machines."""
    asked_s: float | None = None
    """When the launcher asked for the process, by the monotonic clock of this machine; None: it
    runs on another one."""
    run_directory: str | None = None
    """For the coordinator: what to remove if the launcher vanishes."""


def run(launch: Launch, lifeline: Lifeline) -> None:
    """Is the process until it is told to end.

    Raises:
        EngineError: The process cannot go on; the message says why.
    """
    told = (
        launch.process,
        launch.settings,
        launch.coordinator_endpoint,
        launch.incarnation,
        lifeline,
    )
    match launch.process.role:
        case Role.coordinator:
            from engine.coordinator import process as coordinator

            coordinator.run(
                *(*told, launch.run_directory, launch.keys, launch.ports), asked_s=launch.asked_s
            )
        case Role.frontend:
            from engine.frontend import process as frontend

            frontend.run(
                *(*told, launch.listen_fds, launch.keys, launch.ports, launch.access),
                asked_s=launch.asked_s,
            )
        case Role.engine:
            run_engine(launch, lifeline)
        case _ as never:
            assert_never(never)


def run_engine(launch: Launch, ending: Ending, found: Found | None = None) -> None:
    """Is an engine core until it is told to end, in a process of whoever calls.

    Args:
        found: Where that process is, unless it is where it was planned.

    Raises:
        EngineError: It cannot go on; the message says why.
    """
    from engine.core import process as core

    core.run(
        *(launch.process, launch.settings, launch.coordinator_endpoint, launch.incarnation),
        *(ending, found, launch.keys, launch.asked_s),
    )


def command(fd: int) -> list[str]:
    """What starts a process that hangs on this descriptor."""
    return [sys.executable, "-m", "engine.entrypoint", str(fd)]


def be(fd: int) -> int:
    """Is the process that the launcher asks for; its exit code.

    Args:
        fd: Of its lifeline.
    """
    for number in SIGNALS_OF_LAUNCHER:
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)  # sockets and logs are nobody else's business
    allow_many_connections()
    lifeline = Lifeline(fd)
    try:
        launch = msgspec.msgpack.decode(lifeline.payload(), type=Launch)
    except EOFError:
        return 1
    process = launch.process
    logs.configure(process.name, launch.settings.log.level)
    setproctitle.setproctitle(f"flotilla {launch.settings.name} {process.name}")
    try:
        with failures_logged(process.name):
            run(launch, lifeline)
    except Exception:
        return 1
    logger.info("ended")
    return 0


@contextmanager
def failures_logged(name: str) -> Iterator[None]:
    """Writes what a process fails with into its log: an EngineError without traceback."""
    try:
        yield
    except EngineError as problem:
        logger.error("%s", problem)
        if problem.hint:
            logger.error("hint: %s", problem.hint)
        raise
    except Exception:
        logger.exception("%s failed", name)
        raise


def allow_many_connections() -> None:
    """Two to each process of the other kind; shells often allow 1024 open files."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, MAX_OPEN_FILES)), most))


if __name__ == "__main__":
    sys.exit(be(int(sys.argv[1])))
