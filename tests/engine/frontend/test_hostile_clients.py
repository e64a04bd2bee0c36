"""Clients that send half a request, do not read, or vanish: the server goes on."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from engine.frontend.connection import MAX_HEAD_BYTES
from engine.protocol import FinishReason
from engine.sampling import TokenLogprobs
from tests.engine.frontend.chat_request import BODY, CHAT, STREAM, error_of
from tests.engine.frontend.conftest import RunningFrontEnd, Start
from tests.engine.frontend.fake_deployment import DEADLINE_S

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def connected(front_end: RunningFrontEnd, receive_buffer: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(DEADLINE_S)
        connection.connect(("127.0.0.1", front_end.port))
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def request_of(body: object) -> bytes:
    content = json.dumps(body).encode()
    return f"{HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content


def wait_until_idle(front_end: RunningFrontEnd) -> None:
    """Until nobody is being answered, as the front end itself counts."""
    front_end.deployment.wait(lambda seen: seen.heartbeats and not seen.heartbeats[-1].num_requests)


@pytest.fixture
def hasty(start: Start) -> RunningFrontEnd:
    """A front end that waits for a client for a moment only."""
    front_end = start(receive_timeout_s=0.3)
    front_end.wait_until_ready()
    return front_end


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /v1/ch", b'"code":"request_too_late"'),
        (HEAD.encode(), b'"code":"request_too_late"'),
        (f"{HEAD}Content-Length: 100\r\n\r\n{{".encode(), b'"code":"body_too_late"'),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n{{".encode(), b'"code":"body_too_late"'),
        (request_of(BODY) + b"POST /v1", b'"code":"request_too_late"'),
    ],
)
def test_half_a_request_is_waited_for_so_long_and_no_longer(
    hasty: RunningFrontEnd, sent: bytes, answer: bytes
):
    with connected(hasty) as connection:
        connection.sendall(sent)
        received = rest_of(connection)
    assert answer in received
    assert (b"HTTP/1.1 408 " in received) is bool(answer)
    assert hasty.http.post(CHAT, json=BODY).status_code == 200


def test_a_long_answer_is_not_cut_by_the_deadline_for_requests(hasty: RunningFrontEnd):
    deployment = hasty.deployment
    deployment.answer = None
    with connected(hasty) as connection:
        connection.sendall(request_of(STREAM))
        rank, request = deployment.wait_for_request()
        num_beats = deployment.wait(lambda seen: len(seen.heartbeats))
        deployment.wait(lambda seen: len(seen.heartbeats) > num_beats + 4)  # more than 0.3 s
        deployment.output(rank, request.request_id, b"late", FinishReason.stop)
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(65536)
        assert b'"late"' in received


def test_what_is_no_http_is_answered_with_openais_error_body(shared: RunningFrontEnd):
    with connected(shared) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        head, _, body = rest_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET /health HTTP/1.1\r\nX: ", b"a" * 1000),
        (b"GET /health HTTP/1.1\r\n", b"X: y\r\n" * 200),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\n".encode(), b"X: y\r\n" * 200),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1;".encode(), b"a" * 1000),
    ],
    ids=["path", "header", "headers", "trailers", "chunk"],
)
def test_what_comes_around_a_body_has_a_limit(shared: RunningFrontEnd, begin: bytes, more: bytes):
    with connected(shared) as connection:
        connection.sendall(begin)
        with contextlib.suppress(ConnectionError):  # it has been told, and has not listened
            for _ in range(1000):
                connection.sendall(more)
        with contextlib.suppress(ConnectionResetError):
            assert b'"code":"head_too_large"' in rest_of(connection)
    assert shared.http.get("/health").status_code == 200


def test_a_head_that_is_too_large_is_told_so(shared: RunningFrontEnd):
    with connected(shared) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES)
        head, _, body = rest_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "head_too_large"


@pytest.mark.parametrize("size", [1, 1000])
def test_a_body_in_small_chunks_is_read_whole(shared: RunningFrontEnd, size: int):
    content = json.dumps(BODY | {"user": "x" * 200_000 * (size > 1)}).encode()
    parts = (content[begin : begin + size] for begin in range(0, len(content), size))
    headers = {"Content-Type": "application/json"}
    assert shared.http.post(CHAT, content=parts, headers=headers).status_code == 200


def test_requests_that_wait_on_one_connection_are_bounded(shared: RunningFrontEnd):
    request = b"GET /health HTTP/1.1\r\n\r\n"
    with connected(shared) as connection:
        connection.sendall(request * 10)
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 10:
            received += connection.recv(65536)
        with contextlib.suppress(ConnectionError):
            connection.sendall(request * 10_000)
            assert rest_of(connection).count(b"HTTP/1.1 200 ") <= 1
    assert shared.http.get("/health").status_code == 200


@pytest.mark.parametrize("more", [b"nonsense\r\n\r\n", b"GET /" + b"a" * (MAX_HEAD_BYTES + 1)])
def test_what_cannot_be_read_is_not_answered_amid_another_answer(start: Start, more: bytes):
    front_end = start()
    front_end.wait_until_ready()
    front_end.deployment.answer = None
    with connected(front_end) as connection:
        connection.sendall(request_of(STREAM))
        rank, request = front_end.deployment.wait_for_request()
        received = connection.recv(65536)
        connection.sendall(more)
        with contextlib.suppress(ConnectionResetError):
            received += rest_of(connection)
    assert received.count(b"HTTP/1.1 ") == 1
    front_end.deployment.wait(lambda seen: (rank, request.request_id) in seen.aborted)


def test_a_reader_that_is_too_slow_is_dropped_and_its_request_aborted(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    deployment = front_end.deployment
    deployment.answer = None
    with connected(front_end, receive_buffer=4096) as connection:
        # with log-probabilities: a token is more than a kilobyte, and buffers hold megabytes
        connection.sendall(request_of(STREAM | {"logprobs": True, "top_logprobs": 20}))
        rank, request = deployment.wait_for_request()
        scores = [TokenLogprobs(-1.0, list(range(65, 85)), [-2.0] * 20)] * 500
        aborted: list[tuple[int, int]] = []
        deadline_s = time.monotonic() + DEADLINE_S
        while not aborted:  # until all buffers are full, and then some
            assert time.monotonic() < deadline_s
            for _ in range(5):
                deployment.output(rank, request.request_id, b"x" * 500, logprobs=scores)
            front_end.http.get("/health")
            aborted = deployment.wait(lambda seen: [list(seen.aborted)])[0]
        # again where outputs were on their way
        assert set(aborted) == {(rank, request.request_id)}
        with contextlib.suppress(ConnectionResetError):
            assert b"[DONE]" not in rest_of(connection)
    wait_until_idle(front_end)
    deployment.answer = b"ok"
    assert front_end.http.post(CHAT, json=BODY).status_code == 200


def test_an_answer_that_takes_too_long_is_ended(start: Start):
    front_end = start(request_timeout_s=0.3)
    front_end.deployment.answer = None
    front_end.wait_until_ready()
    response = front_end.http.post(CHAT, json=BODY)
    assert (response.status_code, error_of(response)["code"]) == (504, "request_timeout")
    text = front_end.http.post(CHAT, json=STREAM).text
    assert '"code":"request_timeout"' in text
    assert text.endswith("data: [DONE]\n\n")
    front_end.deployment.wait(lambda seen: len(seen.aborted) == 2)


@pytest.mark.parametrize("sent", [b"", HEAD.encode(), request_of(STREAM), request_of(BODY)])
def test_two_hundred_clients_connect_and_vanish(start: Start, sent: bytes):
    front_end = start()
    front_end.wait_until_ready()
    deployment = front_end.deployment
    deployment.answer = None
    is_request = sent.endswith(b"}")
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(connected(front_end))
            # Closing it resets it: the server is told nothing but that.
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall(sent)
        if is_request:
            deployment.wait(lambda seen: len(seen.added) == 200)
    if is_request:
        deployment.wait(lambda seen: len(seen.aborted) == 200)
    wait_until_idle(front_end)
    deployment.answer = b"ok"
    assert front_end.http.post(CHAT, json=BODY).json()["choices"][0]["message"]["content"] == "ok"
