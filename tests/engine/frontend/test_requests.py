"""Which parameters are taken, and what is said about those that are not."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from engine.frontend.errors import InvalidRequest
from engine.frontend.parameters import RequestModel
from engine.frontend.refusals import explain
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest

HI = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "test", "messages": HI} | fields)


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "test", "prompt": "Hi"} | fields)


def refusal(model: type[RequestModel], body: Any) -> InvalidRequest:
    """What a client is told."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    return explain(errors)


def refused_chat(**fields: Any) -> InvalidRequest:
    return refusal(ChatCompletionRequest, {"model": "test", "messages": HI} | fields)


def refused_completion(**fields: Any) -> InvalidRequest:
    return refusal(CompletionRequest, {"model": "test", "prompt": "Hi"} | fields)


def test_everything_but_model_and_messages_may_be_left_out_or_null():
    optional = ChatCompletionRequest.model_fields.keys() - {"model", "messages"}
    assert chat(**dict.fromkeys(optional)) == chat()


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("Hi", ["Hi"]),
        (["Hi"], ["Hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("", [""]),
    ],
)
def test_prompts(prompt, taken):
    assert completion(prompt=prompt).prompts == taken


@pytest.mark.parametrize(
    ("prompt", "param", "code"),
    [
        (["a"] * 1025, "prompt", "array_above_max_length"),
        ([], "prompt", "array_below_min_length"),
        ([[]], "prompt[0]", "array_below_min_length"),
        ([1, "a"], "prompt[1]", "invalid_type"),
        (["a", 1], "prompt[1]", "invalid_type"),
        ([True], "prompt[0]", "invalid_type"),
        ([-1], "prompt[0]", "integer_below_min_value"),
        ([1.5], "prompt[0]", "invalid_type"),
        (5, "prompt", "invalid_type"),
        (None, "prompt", "invalid_type"),
        ({"a": 1}, "prompt", "invalid_type"),
        ("\ud800", "prompt", "invalid_unicode"),
        (["\ud800"], "prompt[0]", "invalid_unicode"),
    ],
)
def test_prompts_that_are_refused(prompt, param, code):
    problem = refused_completion(prompt=prompt)
    assert (problem.param, problem.code) == (param, code)


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "user", "content": "Hi"}, ("user", "Hi")),
        ({"role": "system", "content": "Hi", "name": "me"}, ("system", "Hi")),
        ({"role": "developer", "content": "Hi"}, ("system", "Hi")),
        ({"role": "assistant", "content": None}, ("assistant", "")),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            ("user", "a\nb"),
        ),
        (
            {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None},
            ("assistant", "Hi"),
        ),
    ],
)
def test_messages(message, rendered):
    (taken,) = chat(messages=[message]).messages
    assert tuple(taken.for_template().values()) == rendered


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", "array_below_min_length"),
        ("Hi", "messages", "invalid_type"),
        (["Hi"], "messages[0]", "invalid_type"),
        ([{"content": "Hi"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "tool", "content": "Hi"}], "messages[0].role", "invalid_value"),
        ([*HI, {"role": "user", "content": 5}], "messages[1].content", "invalid_type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].image_url",
            "unsupported_parameter",
        ),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": ""}]}],
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            [{"role": "assistant", "tool_calls": [{}]}],
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
    ],
)
def test_messages_that_are_refused(messages, param, code):
    problem = refused_chat(messages=messages)
    assert (problem.param, problem.code) == (param, code)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"temperature": 3},
            "Invalid 'temperature': integer above maximum value. "
            "Expected a value <= 2, but got 3 instead.",
        ),
        (
            {"temperature": -0.5},
            "Invalid 'temperature': decimal below minimum value. "
            "Expected a value >= 0, but got -0.5 instead.",
        ),
        (
            {"top_p": 0},
            "Invalid 'top_p': integer below minimum value. "
            "Expected a value > 0, but got 0 instead.",
        ),
        (
            {"seed": 2**64},
            "Invalid 'seed': integer above maximum value. "
            "Expected a value < 18446744073709551616, but got 18446744073709551616 instead.",
        ),
        (
            {"max_tokens": "5"},
            "Invalid type for 'max_tokens': expected an integer, but got a string instead.",
        ),
        (
            {"max_tokens": True},
            "Invalid type for 'max_tokens': expected an integer, but got a boolean instead.",
        ),
        (
            {"stream": 1},
            "Invalid type for 'stream': expected a boolean, but got an integer instead.",
        ),
        (
            {"stop": list("abcde")},
            "Invalid 'stop': array too long. Expected a length of at most 4.",
        ),
        (
            {"stop": "a" * 1025},
            "Invalid 'stop': string too long. Expected a length of at most 1024.",
        ),
        (
            {"stop": ["a", ""]},
            "Invalid 'stop[1]': string too short. Expected a length of at least 1.",
        ),
        ({"model": None}, "Invalid type for 'model': expected a string, but got null instead."),
        (
            {"messages": [{"role": "x" * 200, "content": "Hi"}]},
            f"Invalid value for 'messages[0].role': '{'x' * 63}.... Supported values are: "
            "'system', 'developer', 'user' or 'assistant'.",
        ),
        ({"temperatures": 1}, "Unknown parameter: 'temperatures'. Did you mean 'temperature'?"),
        ({"zzz\ud800": 1}, "Unknown parameter: 'zzz\\ud800'."),
        (
            {"stream_options": {"include_usge": True}},
            "Unknown parameter: 'include_usge'. Did you mean 'include_usage'?",
        ),
        (
            {"stream_options": {"include_usage": True}},
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        ),
        (
            {"max_tokens": 5, "max_completion_tokens": 6},
            "'max_tokens' and 'max_completion_tokens' are the same limit: give one of them.",
        ),
        (
            {"n": 0},
            "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        (
            {"n": True},
            "Invalid type for 'n': expected an integer, but got a boolean instead.",
        ),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "'continuous_usage_stats' is only allowed with 'include_usage'.",
        ),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "'add_generation_prompt' and 'continue_final_message' exclude each other.",
        ),
        (
            {"chat_template_kwargs": {"messages": []}},
            "'messages' cannot be set in 'chat_template_kwargs'.",
        ),
        ({"tools": [{}]}, "'tools' is not supported yet."),
        (
            {"temperature": math.nan},
            "Invalid value for 'temperature': Input should be a finite number.",
        ),
    ],
)
def test_refusals_name_the_parameter_and_what_is_expected(fields, message):
    assert refused_chat(**fields).message == message


def test_answers_are_bounded_over_all_prompts():
    assert completion(prompt=["a"] * 8, n=128).num_choices == 128
    problem = refused_completion(prompt=["a"] * 9, n=128)
    assert (problem.param, problem.code) == ("n", "too_many_choices")


@pytest.mark.parametrize(
    ("fields", "adds"),
    [
        ({}, True),
        ({"add_generation_prompt": False}, False),
        ({"continue_final_message": True}, False),
        ({"continue_final_message": False}, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False),
    ],
)
def test_where_the_prompt_of_a_conversation_ends(fields, adds):
    assert chat(**fields).adds_generation_prompt is adds


def test_a_missing_parameter_is_named():
    problem = refusal(ChatCompletionRequest, {"messages": HI})
    assert problem.message == "Missing required parameter: 'model'."


@pytest.mark.parametrize("body", [None, [], "text", b"", 5])
def test_a_body_that_is_no_object_is_refused(body):
    assert refusal(ChatCompletionRequest, body).code == "invalid_body"


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("min_p", [0, 0.5, 1], [-0.1, 1.1, "1"]),
        ("min_tokens", [0, 7], [-1, 1.5]),
        ("stop_token_ids", [[], [0, 5, 5]], [5, [-1], ["5"], [1] * 129]),
        ("presence_penalty", [-2, 0, 2], [-2.1, 2.1]),
        ("frequency_penalty", [-2, 0, 2], [-2.1, 2.1]),
        ("repetition_penalty", [0.01, 1, 100], [0, -1, 1e-30, 101]),
        ("priority", [-(2**31), 0, 2**31 - 1], [2**31, 0.5]),
        (
            "logit_bias",
            [{}, {"0": -100, "50": 100}, {str(token): 0.5 for token in range(300)}],
            [
                *({"5": 101}, {"5": -101}, {"5": "1"}, {"5": True}, {"5": None}, {"5": math.nan}),
                *({"x": 1}, {"-1": 1}, {"05": 1}, {"\ud800": 1}, {"": 1}, {"٣": 1}),
                *({str(token): 0.5 for token in range(301)}, [], 5),
            ],
        ),
    ],
)
def test_ranges_of_the_sampling_parameters(name, taken, refused):
    for value in taken:
        chat(**{name: value})
        completion(**{name: value})
    for value in refused:
        assert (refused_chat(**{name: value}).param or "").partition("[")[0] == name


@pytest.mark.parametrize(
    ("name", "neutral", "asked"),
    [
        ("tools", [], [{}]),
        ("tool_choice", "none", "required"),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("chat_template", None, "{{ messages }}"),
    ],
)
def test_what_is_not_supported_yet_is_taken_where_it_changes_nothing(name, neutral, asked):
    chat(**{name: neutral})
    chat(**{name: None})
    problem = refused_chat(**{name: asked})
    assert (problem.param, problem.code) == (name, "unsupported_parameter")
    assert problem.message == f"'{name}' is not supported yet."


@pytest.mark.parametrize(
    ("name", "neutral", "asked"),
    [("best_of", 1, 2), ("suffix", "", "x")],
)
def test_what_completions_do_not_support_yet(name, neutral, asked):
    completion(**{name: neutral})
    assert refused_completion(**{name: asked}).param == name


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities_of_a_chat(fields, num_logprobs):
    assert chat(**fields).num_logprobs == num_logprobs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"echo": True}, "echo"),
    ],
)
def test_log_probabilities_that_a_chat_is_refused(fields, param):
    assert refused_chat(**fields).param == param


def test_log_probabilities_of_a_completion():
    assert completion(logprobs=0).num_logprobs == 0
    assert not completion(logprobs=0).scores_prompt
    assert not completion(echo=True).scores_prompt
    assert completion(echo=True, logprobs=0).scores_prompt
    for refused in (True, -1, 21, "1"):
        assert refused_completion(logprobs=refused).param == "logprobs"
    assert refused_completion(echo=1).param == "echo"


def test_what_changes_no_answer_is_ignored():
    ignored = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    ignored["parallel_tool_calls"] = True
    request = chat(**ignored)
    assert request.model_dump(exclude=set(ignored)) == chat().model_dump(exclude=set(ignored))


def test_either_limit_is_taken():
    assert chat(max_completion_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=5).max_tokens == 5


@pytest.mark.parametrize(
    ("stop", "stops"), [(None, []), ([], []), ("a", ["a"]), (["a", "b"], ["a", "b"])]
)
def test_stops(stop, stops):
    assert chat(stop=stop).stops == stops
