"""Answers as the checks get them: typed, in time, or a sentence that says what was seen."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.smoke.client import Client, Completion, Ready
from launcher.smoke.results import CheckFailed, FrontEndGone

CHUNK = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@contextmanager
def answering(directory: Path, answer: bytes, answer_s: float = 10) -> Iterator[Client]:
    """A client of a front end that answers every request with the same bytes; none: never."""
    path = str(directory / "socket")
    released = threading.Event()

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while line := self.rfile.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)  # closing with something unread would reset the connection
            self.wfile.write(answer)
            if not answer:
                released.wait(30)

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        pass

    with Server(path, Connection) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Client(path, answer_s)
        finally:
            released.set()
            server.shutdown()
            thread.join()


def http(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n".encode() + body


def events(*data: bytes) -> bytes:
    return http(b"".join(data), "text/event-stream; charset=utf-8")


def test_a_stream_gives_its_chunks(tmp_path: Path):
    with (
        answering(tmp_path, events(CHUNK, CHUNK, DONE)) as client,
        client.stream({"stream": True}, rank=1) as chunks,
    ):
        assert [chunk.choices[0].text for chunk in chunks] == ["a", "a"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (events(CHUNK), r"expected \[DONE\], seen the end of the stream"),
        (events(CHUNK, DONE, CHUNK), r"expected nothing after \[DONE\], seen data"),
        (events(b"a\n\n", DONE), "expected a line of data, seen a"),
        (events(b"data: {}\n\n", DONE), "expected Completion.*missing required field `choices`"),
        (http(b"{}"), "expected text/event-stream, seen application/json"),
        (http(b"no", status="404 Not Found"), "expected status 200, seen 404 no"),
        (b"", r"expected an answer within 0\.1 s \(smoke\.answer_s\), seen none"),
        (b"nonsense\r\n\r\n", "expected an answer, seen BadStatusLine"),
    ],
)
def test_another_stream_is_told(tmp_path: Path, answer: bytes, message: str):
    with (
        answering(tmp_path, answer, answer_s=10 if answer else 0.1) as client,
        pytest.raises(CheckFailed, match=message),
        client.stream({"stream": True}, rank=0) as chunks,
    ):
        list(chunks)


def test_a_body_of_another_form_is_told(tmp_path: Path):
    with (
        answering(tmp_path, http(b'{"error": {}}')) as client,
        pytest.raises(CheckFailed, match="POST /x: expected Completion.*seen {"),
    ):
        client.post("/x", {}, Completion)


def test_a_front_end_that_drains_is_not_asked_again(tmp_path: Path):
    body = b'{"error": {"code": "draining"}}'
    with (
        answering(tmp_path, http(body, status="503 Service Unavailable")) as client,
        pytest.raises(FrontEndGone, match="GET /ready: the deployment is draining"),
    ):
        client.get("/ready", Ready)


def test_nor_is_one_that_is_gone(tmp_path: Path):
    with pytest.raises(FrontEndGone, match="nobody listens any more"):
        Client(str(tmp_path / "nothing"), 1).get("/ready", Ready)
