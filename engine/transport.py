"""ZMQ sockets with the options that every link of a deployment needs, and typed receiving.

A socket never waits for ever: sends do not block (a full queue or a vanished peer is an error for
the caller), closing drops what was not sent, and messages over `MAX_MESSAGE_BYTES` are refused by
libzmq.

Connections between machines (`tcp://`) break without a word when a firewall forgets them or a cable
is pulled: libzmq itself asks the other end now and then, closes a connection that does not answer
and makes a new one. What was on its way is lost, which the numbers of the messages show.

Between machines everything is encrypted with CURVE, and only who has the deployment's
keys is heard. All its processes share one pair: the public key is told to nobody else, and without
it the first message of CURVE's handshake cannot be made (https://rfc.zeromq.org/spec/26/).
"""

from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import msgspec
import zmq

from engine.errors import ProtocolError
from engine.protocol import ENCODER, Message

T = TypeVar("T")
MAX_MESSAGE_BYTES = 256 << 20
"""Far above the largest prompt; a guard against nonsense on a socket."""
MAX_QUEUED_MESSAGES = 100_000
"""High-water mark of each pipe: minutes of a silent reader, a step being one message."""
MAX_QUEUED_PUBLISHED = 32
"""The same of what is published: each message replaces the one before of its topic, a lost one is
repeated, and a thousand ranks' metrics have megabytes."""
MAX_BACKLOG = 4096
"""Connections that may wait to be accepted: a thousand processes connect when a deployment starts.
Source: the kernel's own limit, net.core.somaxconn."""
PING_INTERVAL_S = 5.0
"""Between two questions to the other end of a TCP connection. libzmq's threads answer them, however
busy the process is."""
PING_PATIENCE_S = 20.0
"""A connection is closed when nothing has come for so long: more than a machine is ever held up by,
and less than a front end waits for a rank by default (`health.suspect_s`)."""


class Keys(NamedTuple):
    """CURVE keys, in Z85. Both are secrets: never in a plan, a log or a command line."""

    public: bytes
    secret: bytes

    @classmethod
    def make(cls) -> "Keys":
        """A new pair."""
        return cls(*zmq.curve_keypair())


class Context(zmq.Context[zmq.Socket[bytes]]):
    """A ZMQ context with the keys that its sockets use between machines."""

    keys: ClassVar[Keys | None] = None

    def __init__(self, keys: Keys | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "keys", keys)


def bind(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str
) -> tuple[zmq.Socket[bytes], str]:
    """A bound socket of the kind (`zmq.ROUTER`, ...) and the endpoint that others connect to."""
    socket = _configure(context.socket(kind), kind, endpoint)
    socket.setsockopt(zmq.BACKLOG, MAX_BACKLOG)
    keys = _keys(context, endpoint)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.bind(endpoint)
    bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    if endpoint.startswith("tcp://"):
        # libzmq says `[::ffff:10.0.0.1]`, where a machine without IPv6 would not find it.
        bound = f"{endpoint.rpartition(':')[0]}:{bound.rpartition(':')[2]}"
    return socket, bound


def connect(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str, identity: bytes = b""
) -> zmq.Socket[bytes]:
    """A socket of the kind (`zmq.DEALER`, ...) connected to the endpoint."""
    socket = client(context, kind, endpoint)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(endpoint)
    return socket


def client(context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    """A socket that can be connected to the endpoint, and to others of its scheme."""
    socket = _configure(context.socket(kind), kind, endpoint)
    keys = _keys(context, endpoint)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    return socket


def sibling_endpoint(endpoint: str, name: str, port: int | None = None) -> str:
    """An endpoint to bind beside another: in its directory (ipc), on a port of its host (tcp).

    Args:
        port: None: any free one.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        return f"ipc://{Path(address).with_name(name)}"
    return f"tcp://{address.rpartition(':')[0]}:{'*' if port is None else port}"


def _keys(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> Keys | None:
    keys: Keys | None = getattr(context, "keys", None)
    return keys if endpoint.startswith("tcp://") else None


def send(socket: zmq.Socket[bytes], message: Message, *route: bytes) -> None:
    """Sends without waiting.

    Args:
        route: Identity of the receiver, on a ROUTER; the topic, on an XPUB.

    Raises:
        zmq.Again: The queue to the receiver is full.
        zmq.ZMQError: On a ROUTER, the receiver is not connected (EHOSTUNREACH).
    """
    socket.send_multipart([*route, ENCODER.encode(message)], flags=zmq.NOBLOCK)


def decode(decoder: msgspec.msgpack.Decoder[T], frame: bytes, sender: str) -> T:
    """The typed message in a frame.

    Raises:
        ProtocolError: The frame is no message of this direction; names the sender.
    """
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(
            f"message from {sender} does not follow the protocol: {problem}"
        ) from problem


def _configure(socket: zmq.Socket[bytes], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    is_published = kind in (zmq.XPUB, zmq.SUB)
    socket.hwm = MAX_QUEUED_PUBLISHED if is_published else MAX_QUEUED_MESSAGES
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # else one that connects again is refused while its old connection is taken for alive
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    if kind == zmq.XPUB:
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    if endpoint.startswith("tcp://"):
        patience_ms = round(1000 * PING_PATIENCE_S)
        socket.setsockopt(zmq.HEARTBEAT_IVL, round(1000 * PING_INTERVAL_S))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, patience_ms)
        socket.setsockopt(zmq.HEARTBEAT_TTL, patience_ms)  # the other end's patience with this one
    return socket
