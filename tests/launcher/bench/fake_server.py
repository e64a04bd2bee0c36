"""An OpenAI-compatible server that answers as it is told to, well or badly."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PART = {"choices": [{"index": 0, "text": "a"}]}
DONE = b"data: [DONE]\n\n"


@dataclass
class FakeServer:
    """Writes its answers with `answer`, which is called with the request's body."""

    answer: Callable[["Handler", dict[str, Any]], None]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.refuse(200, {"data": [{"id": "a-model"}]})
        else:
            self.refuse(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.bodies.append(body)
        self.fake.keys.append(self.headers["Authorization"])
        self.fake.answer(self, body)

    def refuse(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        pass


def whole(handler: Handler, body: dict[str, Any]) -> None:
    """As many tokens as asked for, counted if that is asked for."""
    handler.begin()
    for _ in range(body["max_tokens"]):
        handler.event(PART)
    if body.get("stream_options"):
        num_prompt = len(body["prompt"]) if "prompt" in body else 1
        usage = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
        handler.event({"choices": [], "usage": usage})
    handler.wfile.write(DONE)


def chat(handler: Handler, body: dict[str, Any]) -> None:
    """Its words are a token and a half each, its template takes seven."""
    handler.begin()
    handler.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for _ in range(body["max_tokens"]):
        handler.event({"choices": [{"delta": {"content": "b"}}]})
    handler.event({"choices": [{"delta": {}, "finish_reason": "length"}]})
    num_words = sum(len(each["content"].split()) for each in body["messages"])
    usage = {"prompt_tokens": 7 + 3 * num_words // 2, "completion_tokens": body["max_tokens"]}
    handler.event({"choices": [], "usage": usage})
    handler.wfile.write(DONE)


def ends_early(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.event(PART)


def stops_short(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.event(PART)
    handler.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    handler.wfile.write(DONE)


def fails_in_the_middle(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.event(PART)
    handler.event({"error": {"message": "rank 1 has failed", "code": "rank_failed"}})
    handler.wfile.write(DONE)


def refuses(handler: Handler, body: dict[str, Any]) -> None:
    handler.refuse(503, {"error": {"message": "too much to do", "code": "overloaded"}})


def writes_nonsense(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.wfile.write(b"data: {nonsense\n\n")


def hangs_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def knows_no_usage(handler: Handler, body: dict[str, Any]) -> None:
    if "stream_options" in body:
        handler.refuse(400, {"error": {"message": "unknown parameter: stream_options"}})
    else:
        whole(handler, body)


@contextmanager
def fake_server(answer: Callable[[Handler, dict[str, Any]], None]) -> Iterator[FakeServer]:
    fake = FakeServer(answer)
    handler = type("OwnHandler", (Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
