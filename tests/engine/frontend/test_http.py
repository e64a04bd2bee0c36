"""What is not an answer of the model: other paths, errors, headers."""

import json
import re
import socket
from pathlib import Path

import httpx2
import pytest

from engine.frontend.body_limit import default_max_body_bytes
from tests.engine.frontend.conftest import RunningFrontEnd, Start, started
from tests.engine.frontend.fake_deployment import DEADLINE_S

HI = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


def check_error(response: httpx2.Response, status: int, code: str | None) -> str:
    """Asserts OpenAI's error body; its message."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    return str(error["message"])


def test_models(shared: RunningFrontEnd):
    (model,) = shared.openai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("test", "model", "flotilla")


def test_health_and_version(shared: RunningFrontEnd):
    assert shared.http.get("/health").json() == {"status": "alive"}
    assert shared.http.get("/version").json().keys() == {"version"}


def test_ready(shared: RunningFrontEnd):
    response = shared.http.get("/ready")
    assert response.status_code == 200
    body = response.json()
    assert body.pop("coordinator_age_s") >= 0
    assert body == {
        "ready": True,
        "reason": "",
        "ready_ranks": [0],
        "missing": [],
        "suspect": [],
        "lost": [],
    }


def test_head_of_ready(shared: RunningFrontEnd):
    assert shared.http.head("/ready").status_code == 200  # its length changes with the age


def test_a_silent_coordinator_is_seen_by_the_age_of_its_last_word(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    front_end.wait_for_readiness(lambda body: body["coordinator_age_s"] > 0.2)
    front_end.deployment.publish()
    front_end.wait_for_readiness(lambda body: body["coordinator_age_s"] < 0.2)


def test_the_plan_is_relayed(shared: RunningFrontEnd):
    body = shared.http.get("/plan").json()
    assert body["plan"] == {"name": "test"}
    assert body["drift"] == ["something differs"]
    (engine,) = body["actual"]
    fields = ("name", "role", "rank", "incarnation", "state")
    assert [engine[field] for field in fields] == ["engine-0", "engine", 0, 0, "ready"]


def test_openapi_has_the_request_models(shared: RunningFrontEnd):
    schema = shared.http.get("/openapi.json").json()
    models = schema["components"]["schemas"]
    assert models["ChatCompletionRequest"]["required"] == ["model", "messages"]
    assert models["CompletionRequest"]["additionalProperties"] is False
    message = models["ChatMessage"]
    assert message["else"]["required"] == ["content"]  # if it is no assistant's
    prompts = models["CompletionRequest"]["properties"]["prompt"]["oneOf"]
    assert [prompt.get("minItems") for prompt in prompts] == [None, 1, 1, 1]  # a text, lists
    assert "422" not in schema["paths"][CHAT]["post"]["responses"]


def test_it_listens_on_every_socket(shared: RunningFrontEnd):
    transport = httpx2.HTTPTransport(uds=str(shared.unix_socket))
    with httpx2.Client(transport=transport, base_url="http://private") as client:
        assert client.get("/health").status_code == 200
        assert client.post(CHAT, json=HI).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat/completions/", "/v1/embeddings", "/%ff"])
def test_unknown_paths(shared: RunningFrontEnd, path: str):
    assert "Unknown path: GET /" in check_error(shared.http.get(path), 404, "unknown_url")


@pytest.mark.parametrize("path", ["/health", "/version", "/plan", "/v1/models", "/docs"])
def test_head_answers_as_get_without_a_body(shared: RunningFrontEnd, path: str):
    whole = shared.http.get(path)
    with socket.create_connection(("127.0.0.1", shared.port), DEADLINE_S) as connection:
        host = shared.url.removeprefix("http://")
        head = f"HEAD {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert body == b""
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert f"content-length: {len(whole.content)}".encode() in answer.lower()


def test_head_of_what_cannot_be_read(shared: RunningFrontEnd):
    assert shared.http.head("/nowhere").status_code == 404
    response = shared.http.head(CHAT)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_unknown_methods(shared: RunningFrontEnd):
    response = shared.http.get(CHAT)
    assert "Allowed: POST" in check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    response = shared.http.put("/health")
    assert "Allowed: GET, HEAD" in check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"
    check_error(shared.http.options(CHAT), 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"model": "test", "messages": [', "invalid_json"),
        (b"[" * 100_000, "invalid_body"),
        (b"9" * 10_000, "invalid_body"),
        (b"", "invalid_body"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
        (b'"text"', "invalid_body"),
        (b'{"model": "\\ud800"}', "invalid_unicode"),
    ],
)
def test_bodies_that_cannot_be_read(shared: RunningFrontEnd, body: bytes, code: str):
    headers = {"content-type": "application/json"}
    response = shared.http.post(CHAT, content=body, headers=headers)
    message = check_error(response, 400, code)
    assert message.startswith(("The body ", "The text "))


def refusal_of(front_end: RunningFrontEnd, head: str, content: bytes) -> str:
    """What a connection reads that sends this and waits for its end."""
    with socket.create_connection(("127.0.0.1", front_end.port), DEADLINE_S) as connection:
        start = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{start}{head}\r\n\r\n".encode() + content)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_a_body_that_is_announced_as_too_large_is_not_read(shared: RunningFrontEnd):
    limit = default_max_body_bytes(shared.settings.max_model_len)
    answer = refusal_of(shared, f"Content-Length: {limit + 1}", b"")
    assert answer.startswith("HTTP/1.1 413 ")
    assert "connection: close" in answer.lower()
    assert f"at most {limit} bytes" in answer
    assert '"code":"body_too_large"' in answer


def test_a_body_that_turns_out_too_large_is_not_read_on(shared: RunningFrontEnd):
    size = default_max_body_bytes(shared.settings.max_model_len) + 1
    chunk = f"{size:x}\r\n".encode() + b" " * size  # its end never comes
    assert '"code":"body_too_large"' in refusal_of(shared, "Transfer-Encoding: chunked", chunk)


def test_a_body_of_the_largest_size_is_read(shared: RunningFrontEnd):
    body = json.dumps(HI).encode().ljust(default_max_body_bytes(shared.settings.max_model_len))
    headers = {"content-type": "application/json"}
    assert shared.http.post(CHAT, content=body, headers=headers).status_code == 200


def test_another_content_type_is_named(shared: RunningFrontEnd):
    response = shared.http.post(CHAT, data={"model": "test"})
    assert "application/json" in check_error(response, 415, "unsupported_content_type")


@pytest.mark.parametrize("given", ["abc", "a b~!", "x" * 128])
def test_a_clients_request_id_comes_back(shared: RunningFrontEnd, given: str):
    response = shared.http.post(CHAT, json=HI, headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, b"\xc3\xbc", b"a\tb"])
def test_other_request_ids_are_replaced(shared: RunningFrontEnd, given):
    headers = {} if given is None else {"X-Request-Id": given}
    for path in ("/health", "/nowhere"):
        answered = shared.http.get(path, headers=headers).headers["x-request-id"]
        assert re.fullmatch("req-[0-9a-f]{32}", answered)


def test_the_log_names_the_request(shared: RunningFrontEnd, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    shared.http.post(CHAT, json=HI, headers={"X-Request-Id": "mine"}).read()
    (line,) = [each.getMessage() for each in caplog.records if "mine" in each.getMessage()]
    assert line.startswith("request mine: rank 0, 21 prompt tokens, 12 completion tokens, ")
    assert line.endswith(": stop")


def test_the_log_says_what_was_refused(shared: RunningFrontEnd, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for path, body in [(CHAT, HI | {"model": "a\nb"}), (CHAT, HI | {"n": 0}), ("/no%0Awhere", {})]:
        shared.http.post(path, json=body, headers={"X-Request-Id": "mine"})
    lines = [each.getMessage() for each in caplog.records if "mine" in each.getMessage()]
    assert [line[:33] for line in lines] == [
        "request mine: refused with 404: T",
        "request mine: refused with 400: I",
        "request mine: refused with 404: U",
    ]
    assert not any("\n" in line for line in lines)


def test_a_defect_is_an_error_with_the_requests_id(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with started(model_directory) as front_end:
        front_end.wait_until_ready()
        monkeypatch.setattr("engine.frontend.app.sampling_params", fail)
        response = front_end.http.post(CHAT, json=HI, headers={"X-Request-Id": "mine"})
        assert "X-Request-Id" in check_error(response, 500, None)
        assert response.headers["x-request-id"] == "mine"
    # The line is written after the answer, but before the end.
    assert "request mine failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_defect_in_a_stream_ends_it_with_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    front_end = start()
    front_end.wait_until_ready()
    monkeypatch.setattr("engine.frontend.answers.ChatWriter.delta", fail)
    headers = {"X-Request-Id": "mine"}
    text = front_end.http.post(CHAT, json=HI | {"stream": True}, headers=headers).text
    assert "request mine failed" in caplog.text
    *_, error, done, rest = text.split("\n\n")
    assert error.startswith('data: {"error":{"message":"Internal error')
    assert (done, rest) == ("data: [DONE]", "")
