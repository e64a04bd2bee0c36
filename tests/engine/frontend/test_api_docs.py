"""docs/api.md knows every parameter."""

import re
from pathlib import Path

import pytest

from engine.frontend.messages import ChatMessage
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest, StreamOptions
from engine.frontend.tokenization import DetokenizeRequest, TokenizeRequest

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


@pytest.mark.parametrize(
    "model",
    [
        ChatCompletionRequest,
        CompletionRequest,
        ChatMessage,
        StreamOptions,
        TokenizeRequest,
        DetokenizeRequest,
    ],
)
def test_every_parameter_is_described(model):
    described = set(re.findall("`([a-z_]+)`", PAGE))
    assert model.model_fields.keys() <= described


@pytest.mark.parametrize("model", [ChatCompletionRequest, CompletionRequest])
def test_what_is_not_supported_yet_is_said_to_be_so(model):
    begin = PAGE.index("### Not supported yet")
    described = set(re.findall("`([a-z_]+)`", PAGE[begin:]))
    assert model.neutral_values.keys() <= described
