"""Forks engine cores: `python -m engine.fork_server FD TITLE MODULE...`, FD being its socket.

What engine cores import takes longer than all else that they do before they load a model. Here it
is imported once; whoever is forked afterwards has it, and shares its memory. Nothing is ever
computed here: what is forked has one thread, and torch would wait for those that it had before.

The server ends with the launcher's end of the socket. What it has forked goes on: that hangs on
lifelines of its own.
"""

import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec
import setproctitle

from engine import entrypoint, logs
from engine.config import LogLevel

logger = logging.getLogger("engine.fork_server")  # its own name is __main__

MAX_MESSAGE_BYTES = 4096


class Fork(msgspec.Struct, frozen=True, tag=True):
    """To the server, with two descriptors: the new process's lifeline, and its log."""

    number: int
    """By which the answers name it."""


class Forked(msgspec.Struct, frozen=True, tag=True):
    """From the server, with one descriptor: the new process's pidfd."""

    number: int
    pid: int


class NotForked(msgspec.Struct, frozen=True, tag=True):
    number: int
    error: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    number: int
    exit_code: int
    """Negative: the signal that ended it."""


FROM_SERVER: msgspec.msgpack.Decoder[Forked | NotForked | Ended] = msgspec.msgpack.Decoder(
    Forked | NotForked | Ended
)
_TO_SERVER = msgspec.msgpack.Decoder(Fork)


class ForkServer:
    """The server's loop.

    Args:
        launcher: A socket of type SOCK_SEQPACKET: one message, one packet.
        can_fork: What is needed is imported, by one thread. Else new processes import for
            themselves, and say what is wrong.
    """

    def __init__(self, launcher: socket.socket, can_fork: bool) -> None:
        self._launcher, self._can_fork = launcher, can_fork
        self._children: dict[int, tuple[int, int]] = {}
        """Number and pid by pidfd."""
        self._poll = select.poll()
        self._poll.register(launcher, select.POLLIN)

    def serve(self) -> None:
        """Until the launcher's end is closed."""
        with contextlib.suppress(ConnectionError):
            while True:
                for fd, _ in self._poll.poll():
                    if fd != self._launcher.fileno():
                        self._reap(fd)
                    elif not self._take():
                        return

    def _take(self) -> bool:
        """Does what the launcher asks for next; False: it is gone."""
        data, fds, _, _ = socket.recv_fds(self._launcher, MAX_MESSAGE_BYTES, 2)
        if not data:
            return False
        lifeline, log = fds
        try:
            self._fork(_TO_SERVER.decode(data).number, lifeline, log)
        finally:
            os.close(lifeline)
            os.close(log)
        return True

    def _fork(self, number: int, lifeline: int, log: int) -> None:
        try:
            pid = os.fork()
        except OSError as problem:
            self._send(NotForked(number, str(problem)))
            return
        if pid == 0:
            self._be_forked(lifeline, log)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = number, pid
        self._poll.register(pidfd, select.POLLIN)
        self._send(Forked(number, pid), pidfd)

    def _reap(self, pidfd: int) -> None:
        number, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._send(Ended(number, os.waitstatus_to_exitcode(status)))

    def _send(self, message: Forked | NotForked | Ended, *fds: int) -> None:
        socket.send_fds(self._launcher, [msgspec.msgpack.encode(message)], fds)

    def _be_forked(self, lifeline: int, log: int) -> NoReturn:
        """Is the new process; never goes back to what its parent was about to do."""
        exit_code = 1
        try:
            self._launcher.close()
            for pidfd in self._children:
                os.close(pidfd)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            if not self._can_fork:
                os.set_inheritable(lifeline, True)
                os.execv(sys.executable, entrypoint.command(lifeline))
            exit_code = entrypoint.be(lifeline)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(exit_code)


def num_threads() -> int:
    """Of this process, those of libraries included."""
    return len(list(Path("/proc/self/task").iterdir()))


def _imports(modules: list[str]) -> bool:
    """Whether all of it could be imported, and no thread was started."""
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception:  # a package may raise anything; those who need it will say so in their logs
        logger.exception("cannot be imported here: each engine core imports for itself")
        return False
    if (number := num_threads()) > 1:
        logger.warning("%d threads after imports: each engine core imports for itself", number)
        return False
    return True


def main() -> None:
    for number in entrypoint.SIGNALS_OF_LAUNCHER:
        signal.signal(number, signal.SIG_IGN)
    fd, title, *modules = sys.argv[1:]
    setproctitle.setproctitle(title)
    logs.configure("fork-server", LogLevel.info)
    can_fork = _imports(modules)
    gc.collect()
    gc.freeze()  # a collection in a forked process would touch, and so copy, what they share
    with socket.socket(fileno=int(fd)) as launcher:
        ForkServer(launcher, can_fork).serve()


if __name__ == "__main__":
    main()
