"""Listening sockets of the front ends, bound first, so that a taken port is known at once."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import psutil

from engine.config import FrontendOptions
from launcher.errors import Refused

_BACKLOG = 2048

Address = tuple[Any, ...]
"""What `socket.bind` takes: (host, port) or (host, port, flow, scope)."""


def listen(options: FrontendOptions) -> list[socket.socket]:
    """One listening TCP socket per front end, all on one port.

    With several, each has its own (SO_REUSEPORT), so that the kernel spreads connections evenly.
    The first listens without that option before it gets it: so at no moment can another deployment
    that does the same share the port.

    Raises:
        Refused: The port is taken or not ours to take, or the host is none of this machine's.
    """
    family, address = _resolve(options)
    with contextlib.ExitStack() as opened, _explained(options):
        first = opened.enter_context(_listening(family, address, shared=False))
        sockets = [first]
        if options.count > 1:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = (address[0], first.getsockname()[1], *address[2:])
            sockets += [
                opened.enter_context(_listening(family, address, shared=True))
                for _ in range(options.count - 1)
            ]
        opened.pop_all()
        return sockets


def url(bound: socket.socket) -> str:
    """`http://host:port` of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(options: FrontendOptions) -> tuple[socket.AddressFamily, Address]:
    try:
        found = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as problem:  # the latter: it cannot be a name at all
        reason = getattr(problem, "strerror", None) or "not a host name"
        raise Refused(
            f"frontend.host is no address of this machine: {options.host} ({reason})",
            "frontend.host=127.0.0.1",
        ) from problem
    family, _, _, _, address = found[0]
    return family, address


def _listening(family: socket.AddressFamily, address: Address, shared: bool) -> socket.socket:
    with contextlib.ExitStack() as opened:
        bound = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        # Where two have bound with SO_REUSEADDR, this is what the second cannot do.
        bound.listen(_BACKLOG)
        opened.pop_all()
        return bound


@contextlib.contextmanager
def _explained(options: FrontendOptions) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise _refusal(problem, options) from problem


def _refusal(problem: OSError, options: FrontendOptions) -> Refused:
    match problem.errno:
        case errno.EADDRINUSE:
            return Refused(
                f"frontend.port is taken: {options.port}{_holder(options.port)}",
                f"frontend.port={_next_port(options.port)}, or frontend.port=0 for any free one",
            )
        case errno.EACCES:
            return Refused(
                f"frontend.port is reserved for root: {options.port}", "frontend.port=8000"
            )
        case _:
            return Refused(
                f"frontend.host is no address of this machine: {options.host} ({problem.strerror})",
                "frontend.host=127.0.0.1",
            )


def _holder(port: int) -> str:
    """Who listens on the port, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline()).strip()[:80]
                return f" (by pid {connection.pid}: {command})"
    return ""


def _next_port(port: int) -> int:
    """The next port that is free just now: a hint, not a promise."""
    for candidate in range(port + 1, 65536):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", candidate))
            return candidate
    return 0
