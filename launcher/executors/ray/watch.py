"""Whether the nodes of a deployment can be reached, without waiting for Ray to say so.

With its defaults Ray calls a node dead up to a minute after it has vanished. A raylet that has
ended refuses connections, and a machine that is gone answers none: both are known within seconds.
A process that is only stopped still has its connections accepted by the kernel, so that a node
under heavy load is not taken for a dead one.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Mapping

_INTERVAL_S = 1.0
_CONNECT_S = 1.5
_REMOTE = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}
"""What says something about the place; this process may also be out of descriptors."""
_MAX_FAILURES = 2
"""In a row."""

Address = tuple[str, int]


class NodeWatch:
    """Connects to every place now and then.

    Args:
        places: Host and port, by name.
        on_lost: Called once with the name of a place that cannot be reached, and why.
    """

    def __init__(self, places: Mapping[str, Address], on_lost: Callable[[str, str], None]) -> None:
        self._places = dict(places)
        self._on_lost = on_lost
        self._num_failures = dict.fromkeys(places, 0)

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.gather(asyncio.sleep(_INTERVAL_S), *map(self._look, list(self._places)))

    async def _look(self, name: str) -> None:
        reason = await _unreachable(*self._places[name])
        self._num_failures[name] = self._num_failures[name] + 1 if reason else 0
        if self._num_failures[name] == _MAX_FAILURES:
            del self._places[name]
            self._on_lost(name, reason)


async def _unreachable(host: str, port: int) -> str:
    """Why nobody is reached there; empty: somebody is."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer from {host}:{port} within {_CONNECT_S:g} s"
    except OSError as problem:
        if problem.errno not in _REMOTE:
            return ""
        # asyncio puts words of its own into strerror.
        return f"{host}:{port}: {os.strerror(problem.errno) if problem.errno else problem}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""
