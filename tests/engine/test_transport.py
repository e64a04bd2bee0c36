import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zmq

from engine import transport
from engine.errors import ProtocolError
from engine.protocol import (
    ENCODER,
    FROM_COORDINATOR,
    TO_ENGINE,
    AbortRequests,
    RegisterAgain,
    Registered,
)

DEADLINE_MS = 10_000


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as made:
        yield made


def receive(socket: "zmq.Socket[bytes]") -> list[bytes]:
    assert socket.poll(DEADLINE_MS), "nothing came"
    return socket.recv_multipart()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_messages_go_both_ways(context, tmp_path, scheme: str):
    wanted = "tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc://{tmp_path}/socket"
    router, endpoint = transport.bind(context, zmq.ROUTER, wanted)
    assert endpoint.startswith(f"{scheme}://")
    assert "*" not in endpoint
    dealer = transport.connect(context, zmq.DEALER, endpoint, b"engine-0.1")
    with router, dealer:
        transport.send(dealer, Registered("there"))
        identity, frame = receive(router)
        assert identity == b"engine-0.1"
        assert transport.decode(FROM_COORDINATOR, frame, "x") == Registered("there")
        transport.send(router, AbortRequests(3, [1, 2]), identity)
        [frame] = receive(dealer)
        assert transport.decode(TO_ENGINE, frame, "x") == AbortRequests(3, [1, 2])


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_endpoint_names_its_host_as_it_was_told(context, host: str):
    bound, endpoint = transport.bind(context, zmq.ROUTER, f"tcp://{host}:*")
    bound.close()
    assert re.fullmatch(rf"tcp://{re.escape(host)}:\d+", endpoint)


def test_a_message_to_somebody_who_is_not_connected_is_an_error(context, tmp_path):
    router, _ = transport.bind(context, zmq.ROUTER, f"ipc://{tmp_path}/socket")
    with router, pytest.raises(zmq.ZMQError) as caught:
        transport.send(router, RegisterAgain(), b"nobody")
    assert caught.value.errno == zmq.EHOSTUNREACH


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_what_is_published_does_not_pile_up_before_a_subscriber_that_does_not_read(
    context, tmp_path, scheme: str
):
    wanted = "tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc://{tmp_path}/socket"
    publisher, endpoint = transport.bind(context, zmq.XPUB, wanted)
    subscriber = transport.client(context, zmq.SUB, endpoint)
    num_published, payload = 300, b"x" * 1_000_000  # far more than the kernel holds for them
    with publisher, subscriber:
        subscriber.setsockopt(zmq.SUBSCRIBE, b"topic")
        subscriber.connect(endpoint)
        assert receive(publisher) == [b"\x01topic"]
        for _ in range(num_published):
            publisher.send_multipart([b"topic", payload], flags=zmq.NOBLOCK, copy=False)
        receive(subscriber)
        num_kept = 1
        while subscriber.poll(500):
            assert len(receive(subscriber)) == 2
            num_kept += 1
    assert num_kept < num_published / 2


class Proxy:
    """Passes TCP connections on to a port, until the first is to be half open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: set[socket.socket] = set()
        self.has_second = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """The first connection stays open at both ends, and nothing arrives any more."""
        self._frozen.update(self._pairs[0])

    def cut(self) -> None:
        """The client's end of the first connection closes; the other end learns nothing of it."""
        self.freeze()
        self._pairs[0][0].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *(end for pair in self._pairs for end in pair)):
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._pairs.append((client, server))
                if len(self._pairs) == 2:
                    self.has_second.set()
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # closed
            while data := source.recv(65536):
                if source not in self._frozen:
                    target.sendall(data)


@pytest.fixture
def proxied(context) -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]", Proxy]]:
    """A ROUTER and a DEALER that have spoken through a proxy."""
    router, endpoint = transport.bind(context, zmq.ROUTER, "tcp://127.0.0.1:*")
    proxy = Proxy(int(endpoint.rpartition(":")[2]))
    dealer = transport.connect(context, zmq.DEALER, proxy.endpoint, b"engine-0.1")
    with router, dealer:
        transport.send(dealer, Registered("first"))
        receive(router)
        yield router, dealer, proxy
    proxy.close()


def test_one_that_connects_again_is_heard_although_its_old_connection_seems_alive(proxied):
    router, dealer, proxy = proxied
    proxy.cut()
    assert proxy.has_second.wait(DEADLINE_MS / 1000)
    transport.send(dealer, Registered("second"))
    identity, frame = receive(router)
    assert transport.decode(FROM_COORDINATOR, frame, "x") == Registered("second")
    transport.send(router, AbortRequests(3, [1]), identity)
    [frame] = receive(dealer)
    assert transport.decode(TO_ENGINE, frame, "x") == AbortRequests(3, [1])


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(transport, "PING_PATIENCE_S", 1.0)


@pytest.mark.usefixtures("short_patience")
def test_a_connection_that_has_died_without_a_word_is_made_anew(proxied):
    router, dealer, proxy = proxied
    proxy.freeze()
    assert proxy.has_second.wait(DEADLINE_MS / 1000)
    transport.send(dealer, Registered("second"))
    frames = receive(router)
    assert transport.decode(FROM_COORDINATOR, frames[1], "x") == Registered("second")


@pytest.mark.parametrize("frame", [b"", b"nonsense", b"\x92\xa8Registry\x01"])
def test_a_frame_that_is_no_message_names_its_sender(frame: bytes):
    with pytest.raises(ProtocolError, match="message from engine-3 does not follow the protocol"):
        transport.decode(FROM_COORDINATOR, frame, "engine-3")


def test_a_message_of_another_direction_is_refused():
    frame = ENCODER.encode(AbortRequests(0, [1]))
    with pytest.raises(ProtocolError):
        transport.decode(FROM_COORDINATOR, frame, "engine-3")


def test_a_sibling_of_an_ipc_endpoint_is_in_the_same_directory():
    assert transport.sibling_endpoint("ipc:///run/a/coordinator", "b") == "ipc:///run/a/b"


def test_a_sibling_of_a_tcp_endpoint_is_any_port_of_the_same_host():
    assert transport.sibling_endpoint("tcp://10.0.0.1:80", "b") == "tcp://10.0.0.1:*"
    assert transport.sibling_endpoint("tcp://[::1]:80", "b") == "tcp://[::1]:*"
