"""/v1/chat/completions as clients see it."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engine.protocol import FinishReason
from tests.engine.frontend.conftest import RunningFrontEnd, Start

HI: list[Any] = [{"role": "user", "content": "Hi"}]
PROMPT = b"\x01user\nHi\x02\n\x01assistant\n"  # 1 and 2 stand for the special tokens
NUM_PROMPT_TOKENS = len(PROMPT)
PATH = "/v1/chat/completions"


def events(lines: Iterator[str]) -> list[Any]:
    """The data of server-sent events; fails on anything else in the stream."""
    found = []
    for line in lines:
        if line:
            name, data = line.split(": ", 1)
            assert name == "data"
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def stream(front_end: RunningFrontEnd, **fields: Any) -> list[Any]:
    body = {"model": "test", "messages": HI, "stream": True} | fields
    with front_end.http.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(response.iter_lines())


def text_of(chunks: list[Any]) -> str:
    choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_an_answer(shared: RunningFrontEnd):
    answer = shared.openai.chat.completions.create(model="test", messages=HI)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello world"
    assert choice.finish_reason == "stop"
    assert answer.model == "test"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == NUM_PROMPT_TOKENS
    assert answer.usage.completion_tokens == len("Hello world") + 1  # and the end
    assert answer.usage.total_tokens == NUM_PROMPT_TOKENS + 12
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_the_body_is_openais(shared: RunningFrontEnd):
    response = shared.http.post(PATH, json={"model": "test", "messages": HI})
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": "test",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world", "refusal": None},
                "finish_reason": "stop",
                "stop_reason": None,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": NUM_PROMPT_TOKENS,
            "completion_tokens": 12,
            "total_tokens": NUM_PROMPT_TOKENS + 12,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def test_the_events_of_a_stream_are_openais(shared: RunningFrontEnd):
    first, *deltas, last, done = stream(shared)
    assert done == "[DONE]"
    assert first["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "finish_reason": None,
            "logprobs": None,
        }
    ]
    assert last["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": None, "logprobs": None}
    ]
    assert deltas
    for chunk in deltas:
        (choice,) = chunk["choices"]
        assert list(choice["delta"]) == ["content"]
        assert choice["finish_reason"] is None
    assert text_of([first, *deltas, last, done]) == "Hello world"
    for chunk in (first, *deltas, last):
        assert chunk.keys() == {"id", "object", "created", "model", "choices"}
        assert chunk["object"] == "chat.completion.chunk"
        assert all(chunk[key] == first[key] for key in ("id", "created", "model"))


def test_a_stream_ends_with_the_usage_if_asked(shared: RunningFrontEnd):
    *chunks, usage, done = stream(shared, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert all(chunk["usage"] is None for chunk in chunks)


def test_openais_client_reads_the_stream(shared: RunningFrontEnd):
    chunks = list(
        shared.openai.chat.completions.create(
            model="test",
            messages=HI,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = [chunk.choices[0].delta.content for chunk in chunks[:-1]]
    assert "".join(piece or "" for piece in text) == "Hello world"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == NUM_PROMPT_TOKENS + 12


def test_max_tokens(shared: RunningFrontEnd):
    answer = shared.openai.chat.completions.create(model="test", messages=HI, max_tokens=4)
    assert answer.choices[0].message.content == "Hell"
    assert answer.choices[0].finish_reason == "length"
    assert stream(shared, max_completion_tokens=4)[-2]["choices"][0]["finish_reason"] == "length"


def test_the_engine_is_told_what_the_client_asked(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    front_end.openai.chat.completions.create(
        model="test",
        messages=HI,
        temperature=0.5,
        top_p=0.25,
        seed=-1,
        max_tokens=20,
        extra_body={"top_k": 3, "ignore_eos": True},
    )
    _, request = front_end.deployment.wait_for_request()
    text = front_end_prompt(request.prompt_token_ids)
    assert text == PROMPT
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 3)
    assert (sampling.seed, sampling.max_tokens, sampling.ignore_eos) == (2**64 - 1, 20, True)


def front_end_prompt(token_ids: list[int]) -> bytes:
    special = {257: 1, 258: 2}
    return bytes(special.get(token_id, token_id) for token_id in token_ids)


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [
        ("wor", "Hello ", 9),
        (["x", "o w", "ld"], "Hell", 7),
        ("Hello", "", 5),
        ("world!", "Hello world", 12),
    ],
)
def test_stop_strings_end_the_answer(shared: RunningFrontEnd, stop, text, num_tokens):
    answer = shared.openai.chat.completions.create(model="test", messages=HI, stop=stop)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == num_tokens
    chunks = stream(shared, stop=stop, stream_options={"include_usage": True})
    assert text_of(chunks) == text
    assert chunks[-2]["usage"]["completion_tokens"] == num_tokens


def test_a_stop_string_aborts_the_request_in_the_engine(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    deployment = front_end.deployment
    deployment.answer = None
    with front_end.http.stream(
        "POST", PATH, json={"model": "test", "messages": HI, "stream": True, "stop": [" stop"]}
    ) as response:
        rank, request = deployment.wait_for_request()
        deployment.output(rank, request.request_id, b"one")
        deployment.output(rank, request.request_id, b" stop it")
        assert text_of(events(response.iter_lines())) == "one"
    assert deployment.wait(lambda seen: seen.aborted) == [(rank, request.request_id)]
    assert deployment.wait(lambda seen: seen.stopped) == [request.request_id]  # not given up


def test_text_is_sent_as_it_is_made(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    deployment = front_end.deployment
    deployment.answer = None
    answer = front_end.openai.chat.completions.create(model="test", messages=HI, stream=True)
    rank, request = deployment.wait_for_request()
    seen = []
    for chunk in answer:
        delta = chunk.choices[0].delta.content
        seen.append(delta)
        if delta == "":
            deployment.output(rank, request.request_id, "grü".encode()[:-1])
        elif delta == "gr":
            deployment.output(rank, request.request_id, "grü".encode()[-1:])
        elif delta == "ü":
            deployment.output(rank, request.request_id, b"n", FinishReason.length)
    assert seen == ["", "gr", "ü", "n", None]


def test_a_model_that_is_not_served(shared: RunningFrontEnd):
    with pytest.raises(openai.NotFoundError) as caught:
        shared.openai.chat.completions.create(model="gpt-4", messages=HI)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_refused_parameters(shared: RunningFrontEnd):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.chat.completions.create(model="test", messages=HI, n=129)
    assert (caught.value.param, caught.value.code) == ("n", "integer_above_max_value")
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.chat.completions.create(model="test", messages=HI, verbosity="low")
    assert caught.value.param == "verbosity"
    assert caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError, match="Did you mean 'temperature'"):
        shared.openai.chat.completions.create(
            model="test", messages=HI, extra_body={"temperatures": 1}
        )


def test_a_prompt_over_the_context(shared: RunningFrontEnd):
    long: list[Any] = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512") as caught:
        shared.openai.chat.completions.create(model="test", messages=long)
    assert caught.value.code == "context_length_exceeded"


def test_a_very_long_prompt_is_refused_like_a_long_one(shared: RunningFrontEnd):
    long: list[Any] = [{"role": "user", "content": "x" * 20_000}]
    with pytest.raises(openai.BadRequestError, match=r"in the messages"):
        shared.openai.chat.completions.create(model="test", messages=long)
