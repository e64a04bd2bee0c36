from collections.abc import Iterator

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
