"""/v1/completions as clients see it."""

import json
from typing import Any

import openai
import pytest

from tests.engine.frontend.conftest import RunningFrontEnd, Start

PATH = "/v1/completions"


def test_an_answer(shared: RunningFrontEnd):
    answer = shared.openai.completions.create(model="test", prompt="Once")
    assert answer.choices[0].text == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)


def test_the_body_is_openais(shared: RunningFrontEnd):
    body = shared.http.post(PATH, json={"model": "test", "prompt": "Once"}).json()
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": "test",
        "choices": [
            {
                "index": 0,
                "text": "Hello world",
                "finish_reason": "stop",
                "stop_reason": None,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 12,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def test_a_stream(shared: RunningFrontEnd):
    chunks = list(
        shared.openai.completions.create(
            model="test",
            prompt="Once",
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *deltas, last, usage = chunks
    assert "".join(chunk.choices[0].text for chunk in deltas) == "Hello world"
    assert all(chunk.choices[0].finish_reason is None for chunk in deltas)
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "stop")
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 16


def test_the_events_of_a_stream_are_openais(shared: RunningFrontEnd):
    body = {"model": "test", "prompt": "Once", "stream": True}
    lines = shared.http.post(PATH, json=body).text.split("\n\n")
    *events, done, rest = lines
    assert (done, rest) == ("data: [DONE]", "")
    for line in events:
        chunk = json.loads(line.removeprefix("data: "))
        assert chunk.keys() == {"id", "object", "created", "model", "choices"}
        assert chunk["object"] == "text_completion"


@pytest.mark.parametrize("prompt", ["Hi", ["Hi"], [72, 105], [[72, 105]]])
def test_prompts_are_text_or_token_ids(start: Start, prompt: Any):
    front_end = start()
    front_end.wait_until_ready()
    answer = front_end.openai.completions.create(model="test", prompt=prompt)
    assert answer.choices[0].text == "Hello world"
    assert front_end.deployment.wait_for_request()[1].prompt_token_ids == [72, 105]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "empty_prompt"),
        ([72, 260], "invalid_token_id"),
        ([2**70], "invalid_token_id"),
        (["a", ""], "empty_prompt"),
        ([1] * 512, "context_length_exceeded"),
    ],
)
def test_prompts_that_are_refused(shared: RunningFrontEnd, prompt: Any, code: str):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.completions.create(model="test", prompt=prompt)
    assert (caught.value.param, caught.value.code) == ("prompt", code)


def test_stop_strings(shared: RunningFrontEnd):
    answer = shared.openai.completions.create(model="test", prompt="Once", stop=["wor"])
    assert answer.choices[0].text == "Hello "
