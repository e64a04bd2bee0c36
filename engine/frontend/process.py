"""The front-end process, in the order of its life."""

import asyncio
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop
import zmq

from engine import __version__, transport
from engine.access import Access
from engine.config import ModelOptions, ProcessSpec, Role, Settings
from engine.errors import EngineError
from engine.frontend.client import EngineClient
from engine.frontend.front_end import FrontEnd
from engine.frontend.tokenizer import Tokenizer
from engine.lifeline import GRACE, Lifeline
from engine.metrics import STARTING, STARTUP_PHASE, Metrics
from engine.protocol import Phase, Register

logger = logging.getLogger(__name__)

OPEN = Access()


def run(
    process: ProcessSpec,
    settings: Settings,
    coordinator_endpoint: str,
    incarnation: int,
    lifeline: Lifeline,
    listen_fds: tuple[int, ...],
    keys: transport.Keys | None = None,
    ports: Sequence[int] = (),
    access: Access = OPEN,
    asked_s: float | None = None,
) -> None:
    """Is a front end until its lifeline ends.

    Args:
        listen_fds: Listening sockets to serve on.
        ports: On which it listens for engine cores of other machines: requests, outputs; else any.
        access: Who may use it.
        asked_s: When the launcher asked for the process (monotonic clock).

    Raises:
        EngineError: The model has no usable tokenizer, or the coordinator has given up the process.
    """
    name = f"{process.name}.{os.getpid()}"
    requests_port, outputs_port = ports or (None, None)
    requests_endpoint = transport.sibling_endpoint(
        coordinator_endpoint, f"{name}.requests", requests_port
    )
    outputs_endpoint = transport.sibling_endpoint(
        coordinator_endpoint, f"{name}.outputs", outputs_port
    )
    with (
        ExitStack() as opened,
        transport.Context(keys) as context,
        _bound(context, zmq.ROUTER, requests_endpoint) as (requests, requests_endpoint),
        _bound(context, zmq.PULL, outputs_endpoint) as (outputs, outputs_endpoint),
    ):
        sockets = [opened.enter_context(socket.socket(fileno=fd)) for fd in listen_fds]
        endpoints = {"requests": requests_endpoint, "outputs": outputs_endpoint}
        metrics = Metrics(Role.frontend)
        if asked_s is not None:
            metrics.set(STARTUP_PHASE, time.monotonic() - asked_s, (STARTING,))
        client = EngineClient(
            requests,
            outputs,
            settings.balancer.policy,
            settings.health,
            metrics,
            first_rank=_first_rank(process, settings),
        )
        register = _register(process, incarnation, endpoints)
        told = (settings, coordinator_endpoint, register)
        uvloop.run(_live(*told, client, metrics, lifeline, sockets, keys, access))


async def _live(
    settings: Settings,
    coordinator_endpoint: str,
    register: Register,
    client: EngineClient,
    metrics: Metrics,
    lifeline: Lifeline,
    sockets: Sequence[socket.socket],
    keys: transport.Keys | None,
    access: Access,
) -> None:
    front_end = FrontEnd(settings, coordinator_endpoint, register, client, metrics, keys)
    client.start(front_end.note_readiness)
    front_end.start()
    lifeline.watch(
        lambda: front_end.end_from_thread("told by the launcher"),
        grace_s=settings.health.stop_s * GRACE,
    )
    try:
        await _serve(front_end, sockets, access)
    finally:
        client.close()
        front_end.link.close()
    if front_end.failure:
        raise EngineError(front_end.failure)


async def _serve(front_end: FrontEnd, sockets: Sequence[socket.socket], access: Access) -> None:
    # Imported when the process has registered: it takes a second.
    from engine.frontend.app import make_app
    from engine.frontend.server import Server

    settings = front_end.settings
    front_end.enter_phase(Phase.loading_tokenizer)
    tokenizer = await asyncio.to_thread(_load_tokenizer, settings.model)
    server = Server(
        make_app(front_end, tokenizer, access),
        keep_alive_s=settings.frontend.keep_alive_s,
        receive_s=settings.frontend.receive_timeout_s,
        stop_s=settings.health.stop_s * GRACE / 2,
        on_started=front_end.start_listening,
    )
    await front_end.wait_for_ranks()
    if not front_end.ended.is_set():
        await server.serve_until(front_end.ended, sockets)


def _first_rank(process: ProcessSpec, settings: Settings) -> int:
    """Where the front end begins to take turns: as far from the others as can be."""
    return process.index * settings.dp // settings.frontend.count % settings.dp


def _load_tokenizer(model: ModelOptions) -> Tokenizer:
    from engine.checkpoints.sources import model_directory

    return Tokenizer(model_directory(model, lambda line: logger.info("%s", line)))


@contextmanager
def _bound(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str
) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """A bound socket and its endpoint, of which nothing is left behind."""
    bound, endpoint = transport.bind(context, kind, endpoint)
    try:
        yield bound, endpoint
    finally:
        bound.close()
        if endpoint.startswith("ipc://"):  # libzmq leaves the file
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def _register(process: ProcessSpec, incarnation: int, endpoints: dict[str, str]) -> Register:
    return Register(
        name=process.name,
        incarnation=incarnation,
        role=process.role,
        rank=None,
        node=process.node,
        pid=os.getpid(),
        devices=[],
        endpoints=endpoints,
        versions={
            "flotilla": __version__,
            "python": platform.python_version(),
            "pyzmq": zmq.pyzmq_version(),
        },
    )
