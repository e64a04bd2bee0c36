"""Who may use the API, and from which web pages."""

import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.engine.frontend.chat_request import BODY, CHAT, error_of
from tests.engine.frontend.conftest import RunningFrontEnd, started

KEYS = ("sk-one", "sk-two")
ORIGIN = "https://chat.example.org"


@pytest.fixture(scope="module")
def guarded(model_directory: Path) -> Iterator[RunningFrontEnd]:
    """A front end with two keys, which pages of one origin may use."""
    with started(model_directory, api_keys=KEYS, cors_origins=[ORIGIN]) as front_end:
        front_end.wait_until_ready()
        yield front_end


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_whoever_looks_after_processes_needs_no_key(guarded: RunningFrontEnd, path: str):
    assert guarded.http.get(path).status_code == 200
    assert guarded.http.head(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in ("/v1/models", "/v1/models/test", "/metrics", "/plan")],
        *[("GET", path) for path in ("/docs", "/openapi.json", "/version", "/nowhere", "/health/")],
        *[("POST", path) for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize")],
        ("PUT", "/v1/models"),
        ("OPTIONS", CHAT),
    ],
)
def test_everything_else_is_behind_a_key(guarded: RunningFrontEnd, method: str, path: str):
    response = guarded.http.request(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"
    assert response.headers["x-request-id"]
    with_key = guarded.http.request(method, path, headers=bearer("sk-two"))
    assert with_key.status_code != 401


def test_the_description_says_who_asks_for_a_key(guarded: RunningFrontEnd, shared: RunningFrontEnd):
    schema = guarded.http.get("/openapi.json", headers=bearer("sk-one")).json()
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in schema["paths"].items():
        is_open = guarded.http.get(path).status_code != 401
        for operation in methods.values():
            assert operation.get("security") == (None if is_open else [{"key": []}]), path
    plain = shared.http.get("/openapi.json").text
    assert "security" not in plain


def test_examples_send_a_key_where_it_is_asked_for(guarded: RunningFrontEnd):
    page = html.unescape(guarded.http.get("/docs", headers=bearer("sk-one")).text)
    assert "It asks for a key" in page
    examples = re.findall("<pre>(curl .*?)</pre>", page, re.DOTALL)
    with_key = [example for example in examples if "Bearer $KEY" in example]
    assert len(examples) - len(with_key) == 2  # /health, /ready
    for example in with_key:
        _, url, *options = shlex.split(example.replace("\\\n", "").replace("$KEY", "sk-two"))
        given = dict(zip(options[::2], options[1::2], strict=True))
        assert options[0] == "-H"
        key = dict([options[1].split(": ")])
        if "-d" in given:
            headers = key | {"Content-Type": "application/json"}
            answer = guarded.http.post(url, content=given["-d"], headers=headers)
        else:
            answer = guarded.http.get(url, headers=key)
        assert answer.status_code == 200, example


@pytest.mark.parametrize("key", ["sk-three", "sk-one2", "sk-on", "sk-one,sk-two"])
def test_a_wrong_key_is_refused_and_not_repeated(guarded: RunningFrontEnd, key: str):
    response = guarded.http.post(CHAT, json=BODY, headers=bearer(key))
    assert response.status_code == 401
    assert key not in response.text


def test_openais_client_is_let_in_with_any_of_the_keys(guarded: RunningFrontEnd):
    for key in KEYS:
        client = guarded.openai.with_options(api_key=key)
        assert client.models.retrieve("test").id == "test"
        assert client.chat.completions.create(**BODY).choices[0].message.content == "Hello world"
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        guarded.openai.chat.completions.create(**BODY)


def test_the_private_socket_needs_none(guarded: RunningFrontEnd):
    transport = httpx2.HTTPTransport(uds=str(guarded.unix_socket))
    with httpx2.Client(transport=transport, base_url="http://private") as client:
        assert client.get("/plan").status_code == 200
        assert client.post(CHAT, json=BODY).status_code == 200


def test_who_has_no_key_takes_no_place(guarded: RunningFrontEnd):
    for _ in range(3):
        guarded.http.post(CHAT, json=BODY)
    page = guarded.http.get("/metrics", headers=bearer("sk-one")).text
    assert 'status="401"' in page


def test_a_browser_asks_before_it_sends_a_key(guarded: RunningFrontEnd):
    asks = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    response = guarded.http.options(CHAT, headers=asks)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in response.headers["access-control-allow-headers"]
    refused = guarded.http.options(CHAT, headers=asks | {"Origin": "https://evil.example.org"})
    assert "access-control-allow-origin" not in refused.headers


def test_a_page_may_read_answers_and_errors(guarded: RunningFrontEnd):
    for key in ("sk-one", "wrong"):
        headers = bearer(key) | {"Origin": ORIGIN}
        response = guarded.http.post(CHAT, json=BODY, headers=headers)
        assert response.headers["access-control-allow-origin"] == ORIGIN


def test_no_page_may_unless_asked_for(shared: RunningFrontEnd):
    response = shared.http.post(CHAT, json=BODY, headers={"Origin": ORIGIN})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
