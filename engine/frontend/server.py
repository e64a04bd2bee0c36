"""The HTTP server: uvicorn on sockets that the process inherited."""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from engine.frontend.connection import Connection

# Its warnings are of clients that speak no HTTP: whoever wants to could fill the log with them.
logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


class Server(uvicorn.Server):
    """Serves until `should_exit` is set; signals are left to the process.

    Args:
        receive_s: Seconds that a client gets to send a request's head.
        stop_s: Seconds that open connections get when it ends.
        on_started: Called when requests are taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        keep_alive_s: int,
        receive_s: float,
        stop_s: float,
        on_started: Callable[[], None],
    ) -> None:
        config = uvicorn.Config(
            app,
            http=functools.partial(Connection, receive_s=receive_s),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=keep_alive_s,
            timeout_graceful_shutdown=stop_s,  # type: ignore[arg-type]
        )
        super().__init__(config)
        self._on_started = on_started

    async def serve_until(self, ended: asyncio.Event, sockets: Sequence[socket.socket]) -> None:
        """Serves, and closes everything when `ended` is set."""
        serving = asyncio.create_task(self.serve(list(sockets)))
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        self.should_exit = True
        waiting.cancel()
        await serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
