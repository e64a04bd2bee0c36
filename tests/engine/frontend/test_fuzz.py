"""No body, and no call that /openapi.json allows or forbids, makes a front end fail."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.frontend.chat_request import BODY, CHAT
from tests.engine.frontend.conftest import RunningFrontEnd
from tests.engine.frontend.fake_deployment import DEADLINE_S

JSON: "st.SearchStrategy[Any]" = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each),
    max_leaves=6,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer"])},
        optional={"content": st.text(max_size=20) | JSON, "name": JSON},
    ),
    max_size=4,
)
LIKELY: dict[str, "st.SearchStrategy[Any]"] = {
    "messages": TURNS,
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans(), "continuous_usage_stats": st.booleans()}
    ),
    "n": st.integers(-1, 6),
    "max_tokens": st.integers(0, 600),
    "temperature": st.floats(-1, 3),
    "top_p": st.floats(-1, 2),
    "top_k": st.integers(-2, 300),
    "seed": st.integers(-(2**64), 2**65),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=6),
    "chat_template_kwargs": st.dictionaries(st.text(max_size=5), JSON),
    "continue_final_message": st.booleans(),
    "add_generation_prompt": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-1, 21),
    "min_p": st.floats(-0.5, 1.5),
    "min_tokens": st.integers(-1, 20),
    "stop_token_ids": st.lists(st.integers(-1, 300), max_size=3),
    "presence_penalty": st.floats(-3, 3),
    "frequency_penalty": st.floats(-3, 3),
    "repetition_penalty": st.floats(-1, 110),
    "logit_bias": st.dictionaries(
        st.integers(-1, 300).map(str) | st.text(max_size=3), st.floats(-110, 110) | JSON, max_size=3
    ),
    "priority": st.integers(-(2**33), 2**33),
}


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    """A chat request in which some parameters are likely ones and some are anything."""
    body = dict(BODY)
    for name in draw(st.lists(st.sampled_from(sorted(LIKELY)), max_size=5, unique=True)):
        body[name] = draw(LIKELY[name])
    for name in draw(st.lists(st.sampled_from([*LIKELY, "model", "x"]), max_size=1)):
        body[name] = draw(JSON)
    return body


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(body=chats())
def test_no_chat_request_is_the_servers_fault(shared: RunningFrontEnd, body: dict[str, Any]):
    response = shared.http.post(CHAT, json=body)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    elif body.get("stream"):
        assert '"error"' not in response.text
        assert response.text.endswith("data: [DONE]\n\n")


@settings(max_examples=100)
@given(content=st.binary(max_size=100) | JSON.map(str).map(str.encode))
def test_no_bytes_are_the_servers_fault(shared: RunningFrontEnd, content: bytes):
    headers = {"Content-Type": "application/json"}
    response = shared.http.post(CHAT, content=content, headers=headers)
    assert response.status_code == 400, response.text
    assert shared.http.get("/health").status_code == 200


@pytest.fixture(scope="module")
def described(shared: RunningFrontEnd) -> Any:
    config = schemathesis.Config.from_dict(
        {
            # Its schema cannot say what fits the context, or which of two parameters exclude
            # each other: 400 answers that.
            "checks": {"positive_data_acceptance": {"expected-statuses": [200, 400, 404]}},
        }
    )
    return schemathesis.openapi.from_url(f"{shared.url}/openapi.json", config=config)


OPERATIONS = [
    *[("POST", path) for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize")],
    *[("GET", path) for path in ("/v1/models", "/v1/models/{model}", "/health", "/ready")],
    *[("GET", path) for path in ("/plan", "/metrics", "/version")],
]


def test_every_call_is_looked_at(shared: RunningFrontEnd):
    paths = shared.http.get("/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served == set(OPERATIONS)


VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[(method, path, VALID) for method, path in OPERATIONS],
        *[(method, path, INVALID) for method, path in OPERATIONS if method == "POST"],
    ],
)
def test_what_is_served_is_what_is_described(
    described: Any, method: str, path: str, mode: schemathesis.GenerationMode
):
    operation = described[path][method]

    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "test"  # else all that is found is that there is no other
        case.call_and_validate(timeout=DEADLINE_S)

    check()
