"""Log-probabilities as clients see them, whole and streamed, and prompts that are repeated."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_choice import Logprobs

from engine.checkpoints.tiny import END_TURN
from engine.protocol import FinishReason
from engine.sampling import TokenLogprobs
from tests.engine.frontend.chat_request import BODY, CHAT
from tests.engine.frontend.conftest import RunningFrontEnd, Start
from tests.engine.frontend.fake_deployment import FakeDeployment

TEXT = "/v1/completions"
STOP, LENGTH = FinishReason.stop, FinishReason.length
UMLAUT = "ü".encode()


class EchoedLogprobs(Logprobs):
    """OpenAI sends null for the first token of a prompt, which its type leaves out."""

    token_logprobs: list[float | None]  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None]  # type: ignore[assignment]


class EchoedChoice(CompletionChoice):
    finish_reason: Any = None
    logprobs: EchoedLogprobs | None = None


class EchoedCompletion(Completion):
    choices: list[EchoedChoice]  # type: ignore[assignment]


def scores(number: int, *top: int) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(-1.0 - index, list(top), [-0.5 - place for place in range(len(top))])
        for index in range(number)
    ]


Say = Callable[..., httpx2.Response]


@pytest.fixture
def say(front_end: RunningFrontEnd, deployment: FakeDeployment) -> Iterator[Say]:
    """Posts a body and has the engine say something, in steps of fields of `output`."""
    numbers = itertools.count()
    with ThreadPoolExecutor(1) as pool:

        def post(path: str, body: dict[str, Any], *steps: dict[str, Any]) -> httpx2.Response:
            answer = pool.submit(front_end.http.post, path, json=body)
            rank, request = deployment.wait_for_request(next(numbers))
            for step in steps:
                deployment.output(rank, request.request_id, **step)
            return answer.result()

        yield post


def events(text: str) -> list[str]:
    *found, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [event.removeprefix("data: ") for event in found]


STEPS = (
    {"tokens": b"a" + UMLAUT[:1], "logprobs": scores(2, 97, 195)},
    {"tokens": UMLAUT[1:] + b"b", "logprobs": scores(2, 98, 97)},
    {"tokens": [END_TURN], "finish_reason": STOP, "logprobs": scores(1, END_TURN, 0)},
)
TOKENS = ["a", "bytes:\\xc3", "bytes:\\xbc", "b", "<|im_end|>"]


def check_content(content: list[Any]) -> None:
    assert [entry.token for entry in content] == TOKENS
    assert bytes(b for entry in content[:-1] for b in entry.bytes or []).decode() == "aüb"
    assert [entry.logprob for entry in content] == [-1, -2, -1, -2, -1]
    top = [[(each.token, each.logprob) for each in entry.top_logprobs] for entry in content]
    assert top[0] == [("a", -0.5), ("bytes:\\xc3", -1.5)]
    assert top[4] == [("<|im_end|>", -0.5), ("\x00", -1.5)]


def test_a_chat(say: Say):
    asked = {"logprobs": True, "top_logprobs": 2}
    answer = say(CHAT, BODY | asked, *STEPS)
    (choice,) = ChatCompletion.model_validate_json(answer.text).choices
    assert choice.message.content == "aüb"
    assert choice.logprobs is not None
    check_content(choice.logprobs.content or [])


def test_a_streamed_chat(say: Say):
    asked = {"logprobs": True, "top_logprobs": 2, "stream": True}
    answer = say(CHAT, BODY | asked, *STEPS)
    content: list[Any] = []
    text = ""
    for event in events(answer.text):
        (choice,) = ChatCompletionChunk.model_validate_json(event).choices
        text += choice.delta.content or ""
        if choice.logprobs is not None:
            content += choice.logprobs.content or []
            told = b"".join(bytes(entry.bytes or []) for entry in content)
            assert told.removesuffix(b"<|im_end|>").decode() == text
    assert text == "aüb"
    check_content(content)


def test_a_completion(say: Say):
    body = {"model": "test", "prompt": "Hi", "logprobs": 2}
    answer = say(TEXT, body, *STEPS)
    (choice,) = Completion.model_validate_json(answer.text).choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens == TOKENS
    assert told.token_logprobs == [-1, -2, -1, -2, -1]
    assert told.text_offset == [0, 1, 1, 2, 3]
    assert told.top_logprobs is not None
    assert told.top_logprobs[1] == {"a": -0.5, "bytes:\\xc3": -2}
    assert told.top_logprobs[2] == {"b": -0.5, "a": -1.5, "bytes:\\xbc": -1}
    streamed = say(TEXT, body | {"stream": True}, *STEPS)
    tokens, offsets = [], []
    for event in events(streamed.text):
        part = EchoedCompletion.model_validate_json(event).choices[0].logprobs
        tokens += (part and part.tokens) or []
        offsets += (part and part.text_offset) or []
    assert (tokens, offsets) == (TOKENS, told.text_offset)


def test_tokens_of_a_stop_string_are_not_told(say: Say):
    body = BODY | {"logprobs": True, "stop": "cd"}
    answer = say(CHAT, body, {"tokens": b"abcde", "logprobs": scores(5)})
    (choice,) = answer.json()["choices"]
    assert choice["message"]["content"] == "ab"
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_thousands_of_tokens(say: Say, stream: bool):
    step = {"tokens": b"x" * 3000, "logprobs": scores(3000, 120), "finish_reason": LENGTH}
    body = {"model": "test", "prompt": "Hi", "logprobs": 1, "stream": stream}
    answer = say(TEXT, body, step)
    told = [json.loads(event) for event in events(answer.text)] if stream else [answer.json()]
    assert "".join(each["choices"][0]["text"] for each in told) == "x" * 3000
    assert len(told[0]["choices"][0]["logprobs"]["top_logprobs"]) == 3000


def test_an_answer_that_would_repeat_too_many_scores_is_refused(shared: RunningFrontEnd):
    options: Any = {"model": "test", "prompt": ["x" * 500] * 8, "n": 128, "echo": True}
    with pytest.raises(openai.BadRequestError, match="smaller 'n' or 'logprobs'") as caught:
        shared.openai.completions.create(**options, logprobs=1)
    assert caught.value.code == "too_many_logprobs"
    assert len(shared.openai.completions.create(**options, max_tokens=1).choices) == 1024


def test_impossible_tokens(say: Say):
    step = {"tokens": b"a", "logprobs": [TokenLogprobs(-math.inf)], "finish_reason": LENGTH}
    answer = say(CHAT, BODY | {"logprobs": True}, step)
    assert answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999


@pytest.mark.parametrize("prompt", ["Hö", list("Hö".encode())])
def test_a_prompt_is_repeated_with_its_scores(say: Say, prompt: Any):
    body = {"model": "test", "prompt": prompt, "logprobs": 1, "echo": True}
    step = {
        "tokens": b"x",
        "finish_reason": LENGTH,
        "logprobs": scores(1, 120),
        "prompt_logprobs": scores(2, 65),
    }
    (choice,) = EchoedCompletion.model_validate_json(say(TEXT, body, step).text).choices
    assert choice.text == "Höx"
    told = choice.logprobs
    assert told is not None
    assert told.tokens == ["H", "bytes:\\xc3", "bytes:\\xb6", "x"]
    assert told.token_logprobs == [None, -1, -2, -1]
    assert told.top_logprobs[:2] == [None, {"A": -0.5, "bytes:\\xc3": -1}]
    assert told.text_offset == [0, 1, 1, 2]


def test_each_choice_repeats_the_prompt_which_is_scored_once(
    front_end: RunningFrontEnd, deployment: FakeDeployment
):
    body = {"model": "test", "prompt": "Hi", "logprobs": 0, "echo": True, "n": 2, "stream": True}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(front_end.http.post, TEXT, json=body)
        told = [{"prompt_logprobs": scores(1)}, {}]
        for number, fields in enumerate(told):
            rank, request = deployment.wait_for_request(number)
            assert request.sampling.prompt_logprobs == (None if number else 0)
            deployment.output(rank, request.request_id, b"x", LENGTH, logprobs=scores(1), **fields)
        chunks = [json.loads(event)["choices"][0] for event in events(answer.result().text)]
    for index in range(2):
        own = [chunk for chunk in chunks if chunk["index"] == index]
        assert "".join(chunk["text"] for chunk in own) == "Hix"
        tokens = [token for c in own if c["logprobs"] for token in c["logprobs"]["tokens"]]
        assert tokens == ["H", "i", "x"]


def test_a_prompt_alone_is_repeated(shared: RunningFrontEnd):
    answer = shared.openai.completions.create(
        model="test", prompt=["Hi ", "Ho "], echo=True, stop="wor"
    )
    assert [choice.text for choice in answer.choices] == ["Hi Hello ", "Ho Hello "]
    assert {choice.logprobs for choice in answer.choices} == {None}
    ids = [256, 72, 105]  # a special token that the client sent is part of the text
    echoed = shared.openai.completions.create(model="test", prompt=ids, echo=True)
    assert echoed.choices[0].text == "<|endoftext|>HiHello world"


@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_is_scored_without_an_answer(start: Start, n: int):
    front_end = start(dp=1)
    front_end.wait_until_ready()
    api = front_end.openai.completions
    options: Any = {"model": "test", "prompt": "Hi", "max_tokens": 0, "n": n}
    answer = api.create(**options, echo=True)
    assert [choice.text for choice in answer.choices] == ["Hi"] * n
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 0)
    _, request = front_end.deployment.wait_for_request()
    assert request.sampling.max_tokens == 1  # the engine cannot do with less
    front_end.deployment.answer = None
    stream = api.create(**options, echo=True, logprobs=0, stream=True)
    for number in range(n, 2 * n):
        rank, request = front_end.deployment.wait_for_request(number)
        told: Any = {"logprobs": scores(1), "prompt_logprobs": scores(1 if number == n else 0)}
        front_end.deployment.output(rank, request.request_id, b"x", LENGTH, **told)
    chunks = list(stream)
    for index in range(n):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in own) == "Hi"
        logprobs = [choice.logprobs for choice in own if choice.logprobs is not None]
        assert [each.token_logprobs for each in logprobs] == [[None, -1]]
        assert own[-1].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="only allowed with 'echo'"):
        api.create(**options)


@pytest.mark.parametrize("prompt", [[2**70], [72, 260], ""])
def test_what_is_no_prompt_is_not_repeated(shared: RunningFrontEnd, prompt: Any):
    with pytest.raises(openai.BadRequestError):
        shared.openai.completions.create(model="test", prompt=prompt, echo=True, logprobs=1)
