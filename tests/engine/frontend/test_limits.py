from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoints.tiny import NUM_TOKENS
from engine.config import Settings
from engine.frontend.errors import InvalidRequest
from engine.frontend.limits import sampling_params, seed_source
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest
from engine.sampling import SamplingParams
from tests.engine.settings import make_settings


@pytest.fixture(scope="module")
def settings(model_directory: Path) -> Settings:
    return make_settings(model_directory, max_model_len=100)


def sampling(settings: Settings, prompt_length: int = 10, **fields: Any) -> SamplingParams:
    request = CompletionRequest.model_validate({"model": "test", "prompt": "Hi"} | fields)
    (told,) = sampling_params(
        request, [1] * prompt_length, settings, seed_source(None, "frontend-0.1")
    )
    return told


def test_what_the_client_says_is_what_the_engine_is_told(settings: Settings):
    told = sampling(
        settings, max_tokens=5, temperature=0.5, top_p=0.9, top_k=7, seed=11, ignore_eos=True
    )
    assert told == SamplingParams(5, 0.5, 0.9, 7, 11, True)


def test_the_engine_is_told_every_parameter(settings: Settings):
    fields: dict[str, Any] = {
        "min_p": 0.25,
        "min_tokens": 3,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.5,
        "priority": -7,
    }
    asked = fields | {"stop_token_ids": [5, 3, 5], "logit_bias": {"7": -1, "8": 0.5}}
    told = sampling(settings, max_tokens=3, seed=1, **asked)
    assert told == SamplingParams(
        3, seed=1, **fields, stop_token_ids=(5, 3), logit_bias={7: -1.0, 8: 0.5}
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [NUM_TOKENS]}, "stop_token_ids"),
        ({"logit_bias": {str(NUM_TOKENS): 1}}, "logit_bias"),
        ({"min_tokens": 91}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    ],
)
def test_what_fits_neither_the_model_nor_the_rest_is_refused(settings: Settings, fields, param):
    with pytest.raises(InvalidRequest) as caught:
        sampling(settings, **fields)
    assert caught.value.param == param


def test_defaults_are_openais_and_the_rest_of_the_context(settings: Settings):
    told = sampling(settings, seed=11)
    assert told == SamplingParams(90, 1.0, 1.0, 0, 11, False)


def test_requests_without_a_seed_get_different_ones(settings: Settings):
    assert sampling(settings).seed != sampling(settings).seed


def test_each_choice_has_a_seed_of_its_own(settings: Settings):
    def seeds(**fields: Any) -> list[int]:
        request = CompletionRequest.model_validate({"model": "test", "prompt": "Hi"} | fields)
        told = sampling_params(request, [1], settings, seed_source(3, "frontend-0.1"))
        return [each.seed for each in told]

    assert seeds(n=3, seed=-2) == [2**64 - 2, 2**64 - 1, 0]
    assert len(set(seeds(n=128))) == 128


def test_the_prompt_is_scored_once_for_all_choices(settings: Settings):
    body = {"model": "test", "prompt": "Hi", "n": 2, "logprobs": 3, "echo": True}
    request = CompletionRequest.model_validate(body)
    told = sampling_params(request, [1, 2], settings, seed_source(3, "frontend-0.1"))
    assert [(each.logprobs, each.prompt_logprobs) for each in told] == [(3, 3), (3, None)]


def test_seeds_are_drawn_from_the_seed_of_the_config_and_differ_between_processes():
    def drawn(seed: int | None, process: str) -> list[int]:
        source = seed_source(seed, process)
        return [source.getrandbits(64) for _ in range(3)]

    assert drawn(7, "frontend-0.1") == drawn(7, "frontend-0.1")
    others = [drawn(7, "frontend-1.1"), drawn(7, "frontend-0.2"), drawn(8, "frontend-0.1")]
    assert drawn(7, "frontend-0.1") not in others
    assert drawn(None, "frontend-0.1") != drawn(None, "frontend-0.1")


@given(seed=st.integers(-(2**63), 2**64 - 1))
def test_seeds_fit_64_bits(settings: Settings, seed: int):
    told = sampling(settings, seed=seed).seed
    assert 0 <= told < 2**64
    assert (told - seed) % 2**64 == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1e-30}, {"temperature": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 10**30}, {"top_k": NUM_TOKENS}),
    ],
)
def test_odd_values_become_plain_ones(settings: Settings, fields, expected):
    told = sampling(settings, **fields)
    assert {name: getattr(told, name) for name in expected} == expected


@pytest.mark.parametrize(("prompt_length", "max_tokens"), [(99, None), (99, 1), (50, 50)])
def test_the_context_may_be_filled(settings: Settings, prompt_length, max_tokens):
    told = sampling(settings, prompt_length, max_tokens=max_tokens)
    assert told.max_tokens == 100 - prompt_length


@pytest.mark.parametrize(
    ("prompt_length", "max_tokens"), [(100, None), (100, 1), (50, 51), (10, 10**30)]
)
def test_more_than_the_context_is_refused(settings: Settings, prompt_length, max_tokens):
    with pytest.raises(InvalidRequest) as caught:
        sampling(settings, prompt_length, max_tokens=max_tokens)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    assert "maximum context length is 100 tokens" in caught.value.message


def test_refusals_name_the_chats_messages(settings: Settings):
    chat = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(InvalidRequest) as caught:
        sampling_params(
            ChatCompletionRequest.model_validate(chat),
            [1] * 100,
            settings,
            seed_source(None, "frontend-0.1"),
        )
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("token_ids", "code"), [([], "empty_prompt"), ([1, NUM_TOKENS], "invalid_token_id")]
)
def test_prompts_that_the_model_cannot_read_are_refused(settings: Settings, token_ids, code):
    request = CompletionRequest(model="test", prompt="Hi")
    with pytest.raises(InvalidRequest) as caught:
        sampling_params(request, token_ids, settings, seed_source(None, "frontend-0.1"))
    assert caught.value.code == code
