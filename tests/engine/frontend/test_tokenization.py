"""/tokenize, /detokenize and how conversations become prompts."""

from typing import Any

import pytest

from tests.engine.frontend.chat_request import BODY, CHAT, error_of
from tests.engine.frontend.conftest import RunningFrontEnd, Start

HI = [{"role": "user", "content": "Hi"}]
BEGIN, END = 257, 258
RENDERED = [BEGIN, *b"user\nHi", END, *b"\n", BEGIN, *b"assistant\n"]


def test_a_text(shared: RunningFrontEnd):
    body = shared.http.post("/tokenize", json={"model": "test", "prompt": "Hi"}).json()
    assert body == {"count": 2, "max_model_len": 512, "tokens": [72, 105], "token_strs": None}


def test_a_conversation(shared: RunningFrontEnd):
    body = shared.http.post("/tokenize", json={"messages": HI}).json()
    assert body["tokens"] == RENDERED
    body = shared.http.post(
        "/tokenize", json={"messages": HI, "add_generation_prompt": False}
    ).json()
    assert body["tokens"] == RENDERED[: -len(b"\x00assistant\n")]


def test_what_the_vocabulary_calls_tokens(shared: RunningFrontEnd):
    asked = {"messages": HI, "return_token_strs": True}
    body = shared.http.post("/tokenize", json=asked).json()
    assert len(body["token_strs"]) == body["count"]
    assert body["token_strs"][0] == "<|im_start|>"


def test_there_and_back(shared: RunningFrontEnd):
    text = "Grüße, 世界 🙂 <|im_end|>"
    tokens = shared.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert shared.http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
    assert shared.http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    assert shared.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    long = tokens * 2000
    assert shared.http.post("/detokenize", json={"tokens": long}).json()["prompt"] == text * 2000


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [260]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [2**70]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
def test_what_is_refused(shared: RunningFrontEnd, path: str, body: Any, status: int, param: str):
    response = shared.http.post(path, json=body)
    assert (response.status_code, error_of(response)["param"]) == (status, param)


def test_the_served_model_by_its_name(shared: RunningFrontEnd):
    assert shared.openai.models.retrieve("test").id == "test"
    response = shared.http.get("/v1/models/other/one")
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_an_answer_that_continues_the_last_message(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    messages = [*HI, {"role": "assistant", "content": "Well, "}]
    asked = BODY | {"messages": messages, "continue_final_message": True}
    assert front_end.http.post(CHAT, json=asked).status_code == 200
    prompt = front_end.deployment.wait_for_request()[1].prompt_token_ids
    assert prompt == [*RENDERED, *b"Well, "]
