"""What ended an answer, as vLLM tells it."""

from typing import Any

import pytest

from engine.protocol import FinishReason
from tests.engine.frontend.chat_request import BODY, STREAM
from tests.engine.frontend.conftest import Post, RunningFrontEnd
from tests.engine.frontend.fake_deployment import FakeDeployment


@pytest.mark.parametrize(
    ("fields", "reason", "stop_reason"),
    [
        ({}, "stop", None),
        ({"stop": ["xyz", "wor"]}, "stop", "wor"),
        ({"max_tokens": 2}, "length", None),
    ],
)
def test_a_stop_string_is_told(
    shared: RunningFrontEnd, fields: dict[str, Any], reason: str, stop_reason: str | None
):
    api: Any = shared.openai
    chat = api.chat.completions.create(**BODY, **fields).choices[0]
    assert (chat.finish_reason, chat.stop_reason) == (reason, stop_reason)
    text = api.completions.create(model="test", prompt="Hi", **fields).choices[0]
    assert (text.finish_reason, text.stop_reason) == (reason, stop_reason)
    *_, last = api.chat.completions.create(**BODY, **fields, stream=True)
    assert last.choices[0].stop_reason == stop_reason


@pytest.mark.parametrize(("includes", "text"), [(False, "a"), (True, "ab")])
def test_a_stop_token_is_told_and_is_text_only_on_demand(
    front_end: RunningFrontEnd,
    deployment: FakeDeployment,
    post: Post,
    includes: bool,
    text: str,
):
    stop = {"stop_token_ids": [98], "include_stop_str_in_output": includes}
    answer = post(BODY | stop)
    rank, request = deployment.wait_for_request()
    assert request.sampling.stop_token_ids == (98,)
    deployment.output(rank, request.request_id, b"ab", FinishReason.stop, stop_token_id=98)
    (choice,) = answer.result().json()["choices"]
    assert (choice["message"]["content"], choice["stop_reason"]) == (text, 98)
    streamed = post(STREAM | stop)
    rank, request = deployment.wait_for_request(1)
    deployment.output(rank, request.request_id, b"ab", FinishReason.stop, stop_token_id=98)
    assert '"finish_reason":"stop","stop_reason":98' in streamed.result().text
