"""Every answer, and every chunk of one, is what the types of OpenAI's client say."""

import json
from typing import Any

import pytest
from openai.types import Completion, CompletionChoice, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.engine.frontend.chat_request import BODY, CHAT
from tests.engine.frontend.conftest import RunningFrontEnd

TEXT = "/v1/completions"
PROMPT = {"model": "test", "prompt": "Hi"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"max_tokens": 3},
    {"stop": "wor", "include_stop_str_in_output": True},
    {"min_p": 0.1, "min_tokens": 2, "stop_token_ids": [5], "logit_bias": {"7": -100}},
]
STREAM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"include_usage": True},
    {"include_usage": True, "continuous_usage_stats": True},
]


class UnfinishedChoice(CompletionChoice):
    """OpenAI sends null too while a text goes on, which its type leaves out."""

    finish_reason: Any = None


class TextChunk(Completion):
    choices: list[UnfinishedChoice]  # type: ignore[assignment]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(
    ("path", "body", "kind"), [(CHAT, BODY, ChatCompletion), (TEXT, PROMPT, Completion)]
)
def test_whole_answers(
    shared: RunningFrontEnd,
    path: str,
    body: dict[str, Any],
    kind: type[BaseModel],
    variant: dict[str, Any],
):
    text = shared.http.post(path, json=body | variant).text
    check(kind, text)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("options", STREAM_OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("path", "body", "kind"), [(CHAT, BODY, ChatCompletionChunk), (TEXT, PROMPT, TextChunk)]
)
def test_chunks(
    shared: RunningFrontEnd,
    path: str,
    body: dict[str, Any],
    kind: type[BaseModel],
    options: dict[str, Any],
    variant: dict[str, Any],
):
    asked = body | variant | {"stream": True, "stream_options": options}
    *events, done, rest = shared.http.post(path, json=asked).text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        check(kind, event.removeprefix("data: "))


def test_models(shared: RunningFrontEnd):
    (listed,) = shared.http.get("/v1/models").json()["data"]
    check(Model, json.dumps(listed))
    check(Model, shared.http.get("/v1/models/test").text)


def check(kind: type[BaseModel], text: str) -> None:
    """Validates, which the client itself does not, and finds that nothing was lost."""
    parsed = kind.model_validate_json(text)
    assert parsed.model_dump(mode="json", exclude_unset=True) == json.loads(text)
