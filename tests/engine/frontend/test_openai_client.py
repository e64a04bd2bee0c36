"""What OpenAI's own client asks for is what the engine is told, item by item."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.sampling import SamplingParams
from tests.engine.frontend.conftest import RunningFrontEnd, started

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if enable_thinking %}<think>{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
HI: list[Any] = [{"role": "user", "content": "Hi"}]
OF_OPENAI: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.75,
    "seed": 9,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.25,
    "logit_bias": {"7": -1, "8": 2.5},
}
OF_VLLM: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.125,
    "min_tokens": 2,
    "stop_token_ids": [3, 4],
    "repetition_penalty": 1.25,
    "ignore_eos": True,
    "priority": -3,
}
TOLD = SamplingParams(
    6,
    **OF_OPENAI | OF_VLLM | {"logit_bias": {7: -1.0, 8: 2.5}, "stop_token_ids": (3, 4)},
)


@pytest.fixture(scope="module")
def front_end(model_directory: Path, tmp_path_factory) -> Iterator[RunningFrontEnd]:
    """A front end whose chat template shows all that it is given."""
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(model_directory, directory, dirs_exist_ok=True)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    with started(directory) as front_end:
        front_end.wait_until_ready()
        yield front_end


def newest(front_end: RunningFrontEnd, number: int = -1) -> tuple[str, SamplingParams]:
    """The prompt and the parameters of the request that came last, or as the `number`th."""
    _, request = front_end.deployment.wait(lambda seen: seen.added[number:])[0]
    return bytes(request.prompt_token_ids).decode(), request.sampling


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_the_sampling_of_a_chat(front_end: RunningFrontEnd, limit: str):
    ask: Any = front_end.openai.chat.completions.create
    ask(model="test", messages=HI, **OF_OPENAI, **{limit: 6}, extra_body=OF_VLLM)
    assert newest(front_end) == ("[user]Hi[assistant]", TOLD)


def test_the_sampling_of_a_completion(front_end: RunningFrontEnd):
    ask: Any = front_end.openai.completions.create
    ask(model="test", prompt="Hi", max_tokens=6, **OF_OPENAI, extra_body=OF_VLLM)
    assert newest(front_end) == ("Hi", TOLD)


@pytest.mark.parametrize(
    ("messages", "extra", "prompt"),
    [
        ([{"role": "developer", "content": "Be brief"}, *HI], {}, "[system]Be brief[user]Hi"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                }
            ],
            {},
            "[user]a\nb",
        ),
        (HI, {"chat_template_kwargs": {"enable_thinking": True}}, "[user]Hi<think>"),
        (
            [*HI, {"role": "assistant", "content": "Ho"}],
            {"continue_final_message": True},
            "[user]Hi[assistant]Ho",
        ),
        (HI, {"add_generation_prompt": False}, "[user]Hi"),
    ],
)
def test_the_prompt_of_a_conversation(
    front_end: RunningFrontEnd, messages: list[Any], extra: dict[str, Any], prompt: str
):
    front_end.openai.chat.completions.create(model="test", messages=messages, extra_body=extra)
    is_open = not {"continue_final_message", "add_generation_prompt"} & extra.keys()
    assert newest(front_end)[0] == prompt + "[assistant]" * is_open


@pytest.mark.parametrize("num_top", [0, 20])
def test_log_probabilities(front_end: RunningFrontEnd, num_top: int):
    api, deployment = front_end.openai, front_end.deployment
    number = deployment.wait(lambda seen: len(seen.added) + 1) - 1
    deployment.answer = None
    try:
        with api.chat.completions.create(
            model="test", messages=HI, logprobs=True, top_logprobs=num_top, stream=True
        ):
            assert newest(front_end, number)[1].logprobs == num_top
        with api.completions.create(
            model="test", prompt="Ho", logprobs=num_top, echo=True, stream=True
        ):
            prompt, sampling = newest(front_end, number + 1)
    finally:
        deployment.answer = b"Hello world"
    assert (prompt, sampling.logprobs, sampling.prompt_logprobs) == ("Ho", num_top, num_top)


@pytest.mark.parametrize(
    ("stop", "min_tokens", "text"),
    [
        ("o", 0, "Hello"),
        ("o", 5, "Hello wo"),
        (["ld", "world"], 4, "Hello world"),
        ("world", 8, None),  # it begins where it is not looked for
        ("x", 0, None),
    ],
)
def test_a_stop_string_at_the_end_of_a_stream(
    front_end: RunningFrontEnd, stop: Any, min_tokens: int, text: str | None
):
    extra = {"include_stop_str_in_output": True, "min_tokens": min_tokens}
    for includes in (True, False):
        extra["include_stop_str_in_output"] = includes
        chunks = list(
            front_end.openai.completions.create(
                model="test", prompt="Hi", stop=stop, stream=True, extra_body=extra
            )
        )
        found: Any = chunks[-1].choices[0]
        expected = text or "Hello world"
        if text and not includes:
            expected = expected.removesuffix(found.stop_reason)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        assert (found.stop_reason is not None) is (text is not None)


@pytest.mark.parametrize(
    ("ask", "error", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"n": 129}, openai.BadRequestError, "integer_above_max_value"),
        ({"temperature": -1}, openai.BadRequestError, "integer_below_min_value"),
        ({"temperature": 2.5}, openai.BadRequestError, "decimal_above_max_value"),
        ({"prompt": [300]}, openai.BadRequestError, "invalid_token_id"),
        ({"prompt": "x" * 600}, openai.BadRequestError, "context_length_exceeded"),
        ({"prompt": "x" * 2**21}, openai.APIStatusError, "body_too_large"),
        ({"prompt": {}}, openai.BadRequestError, "invalid_type"),
        ({"extra_body": {"temperatures": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"extra_headers": {"Content-Type": "text/plain"}}, openai.APIStatusError, None),
        ({"logprobs": 21}, openai.BadRequestError, "integer_above_max_value"),
        ({"stream_options": {}}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_refusals_are_the_clients_own_errors(
    front_end: RunningFrontEnd, ask: dict[str, Any], error: type[Exception], code: str | None
):
    options: dict[str, Any] = {"model": "test", "prompt": "Hi"}
    with pytest.raises(error) as caught:
        front_end.openai.completions.create(**options | ask)
    problem = caught.value
    assert isinstance(problem, openai.APIStatusError)
    assert problem.code == (code or "unsupported_content_type")
    assert problem.response.headers["x-request-id"]
