"""Several answers to one request: `n`, and several prompts."""

from typing import Any

import openai
import pytest

from engine.protocol import FinishReason
from tests.engine.frontend.chat_request import BODY, CHAT, error_of
from tests.engine.frontend.conftest import Post, RunningFrontEnd, Start
from tests.engine.frontend.fake_deployment import FakeDeployment

TEXT = "/v1/completions"


def test_each_choice_is_an_answer(shared: RunningFrontEnd):
    answer = shared.openai.chat.completions.create(**BODY, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Hello world"}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_the_prompt_counts_once(shared: RunningFrontEnd):
    one = shared.openai.chat.completions.create(**BODY).usage
    three = shared.openai.chat.completions.create(**BODY, n=3).usage
    assert one is not None
    assert three is not None
    assert three.prompt_tokens == one.prompt_tokens
    assert three.completion_tokens == 3 * one.completion_tokens
    assert three.total_tokens == three.prompt_tokens + three.completion_tokens
    assert three.prompt_tokens_details == one.prompt_tokens_details


def test_the_other_choices_follow_the_first_to_its_rank(
    front_end: RunningFrontEnd, deployment: FakeDeployment, post: Post
):
    answer = post(BODY | {"n": 3, "seed": 7})
    rank, first = deployment.wait_for_request()
    deployment.output(rank, first.request_id, b"a")
    others = [deployment.wait_for_request(number) for number in (1, 2)]
    assert [each_rank for each_rank, _ in others] == [rank, rank]
    requests = [first, *(request for _, request in others)]
    assert all(request.prompt_token_ids == first.prompt_token_ids for request in requests)
    assert sorted(request.sampling.seed for request in requests) == [7, 8, 9]
    for request in requests:
        text = b"%d" % request.sampling.seed
        deployment.output(rank, request.request_id, text, FinishReason.length)
    texts = [choice["message"]["content"] for choice in answer.result().json()["choices"]]
    assert texts == ["a7", "8", "9"]  # in the order of their seeds


def test_a_failed_choice_fails_the_answer_and_ends_the_others(
    front_end: RunningFrontEnd, deployment: FakeDeployment, post: Post
):
    answer = post(BODY | {"n": 2})
    rank, first = deployment.wait_for_request()
    deployment.output(rank, first.request_id, b"a")
    _, second = deployment.wait_for_request(1)
    deployment.output(rank, second.request_id, b"", FinishReason.error, error="no luck")
    response = answer.result()
    assert (response.status_code, error_of(response)["message"]) == (500, "no luck")
    deployment.wait(lambda seen: (rank, first.request_id) in seen.aborted)


def test_a_stream_of_several_choices(shared: RunningFrontEnd):
    chunks = list(
        shared.openai.chat.completions.create(
            **BODY, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = ["", ""]
    roles, reasons = [], {}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.delta.role:
            roles.append(choice.index)
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == ["Hello world"] * 2
    assert sorted(roles) == [0, 1]
    assert reasons == {0: "stop", 1: "stop"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


@pytest.mark.parametrize("prompt", [["Hi", "Ho"], [[72, 105], [72, 111]]])
def test_several_prompts(start: Start, prompt: Any):
    front_end = start()
    front_end.wait_until_ready()
    answer = front_end.openai.completions.create(model="test", prompt=prompt, n=2, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"Hello world"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 48)
    added = [front_end.deployment.wait_for_request(number)[1] for number in range(4)]
    prompts = sorted((bytes(each.prompt_token_ids), each.sampling.seed) for each in added)
    assert prompts == [(b"Hi", 5), (b"Hi", 6), (b"Ho", 5), (b"Ho", 6)]


def test_several_prompts_are_streamed(shared: RunningFrontEnd):
    texts = {0: "", 1: "", 2: ""}
    for chunk in shared.openai.completions.create(
        model="test", prompt=["a", "b", "c"], stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert set(texts.values()) == {"Hello world"}


def test_one_bad_prompt_of_several_refuses_them_all(start: Start):
    front_end = start()
    front_end.wait_until_ready()
    with pytest.raises(openai.BadRequestError):
        front_end.openai.completions.create(model="test", prompt=["a", "b" * 600])
    front_end.openai.completions.create(model="test", prompt="c")
    assert front_end.deployment.wait_for_request()[1].prompt_token_ids == [ord("c")]


def test_usage_so_far_in_each_chunk(shared: RunningFrontEnd):
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        shared.openai.chat.completions.create(**BODY, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 12
    text = shared.openai.completions.create(
        model="test", prompt="Hi", stream=True, stream_options=options
    )
    assert all(chunk.usage is not None for chunk in text)


def test_the_stop_text_may_be_part_of_the_answer(shared: RunningFrontEnd):
    extra = {"include_stop_str_in_output": True}
    answer = shared.openai.chat.completions.create(**BODY, stop=["wor"], extra_body=extra)
    assert answer.choices[0].message.content == "Hello wor"
    assert answer.choices[0].finish_reason == "stop"


def test_requests_that_wait_are_bounded(start: Start):
    front_end = start(max_queued_requests=1)
    front_end.deployment.answer = None
    front_end.wait_until_ready()
    stream = front_end.openai.chat.completions.create(**BODY, stream=True)
    rank, request = front_end.deployment.wait_for_request()
    refused = front_end.http.post(CHAT, json=BODY)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "frontend.max_queued_requests" in error_of(refused)["message"]
    front_end.deployment.output(rank, request.request_id, b"x")
    assert next(stream).choices[0].delta.content == ""
    assert next(stream).choices[0].delta.content == "x"  # it waits no more
    with front_end.openai.chat.completions.create(**BODY, stream=True) as second:
        assert front_end.deployment.wait_for_request(1)
        second.close()
    stream.close()
