"""Keys, several answers and long conversations, from a deployment of real processes."""

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.running import ask, serving

pytestmark = pytest.mark.timeout(120)
KEY = "sk-secret-of-the-test"


def client_of(client: Any, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0)


def test_a_deployment_with_a_key_tells_it_nobody(runtime, tmp_path: Path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    overrides = ("model=dummy", f"frontend.api_key_file={path}", "frontend.host=0.0.0.0")
    with serving(*overrides, runtime_directory=runtime) as (launcher, client):
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        with pytest.raises(openai.AuthenticationError):
            client_of(client).models.list()
        assert client_of(client, KEY).models.list().data[0].id == "dummy"
        plan = client.get("/plan", headers={"Authorization": f"Bearer {KEY}"})
        assert plan.status_code == 200
        assert KEY not in plan.text
        assert KEY not in "".join(log.read_text() for log in launcher.directory.rglob("*.log"))
        status = ask("action=status", f"name={launcher.name}", runtime_directory=runtime)
        assert status.returncode == 0, status.stderr
    assert KEY not in launcher.output
    assert "no key is asked for" not in launcher.output


def test_without_a_key_listening_wider_is_told(runtime):
    overrides = ("model=dummy", "frontend.host=0.0.0.0")
    with serving(*overrides, runtime_directory=runtime) as (launcher, client):
        assert client.get("/v1/models").status_code == 200
    assert "frontend.host=0.0.0.0 can use the API, no key is asked for" in launcher.output


def test_a_key_file_that_others_can_read_is_refused(runtime, tmp_path: Path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    path.chmod(0o644)
    asked = ask("model=dummy", f"frontend.api_key_file={path}", runtime_directory=runtime)
    assert asked.returncode == 2
    assert f"hint: chmod 600 {path}" in asked.stderr
    assert KEY not in asked.stderr


def test_keys_of_the_command_line_are_not_in_the_plan(runtime):
    asked = ask(
        *("model=dummy", "action=plan", "plan.format=json", f"frontend.api_keys=[{KEY}]"),
        runtime_directory=runtime,
    )
    assert json.loads(asked.stdout)["dp"] == 1
    assert KEY not in asked.stdout + asked.stderr


def test_turns_of_a_conversation_hit_the_prefix_cache(runtime):
    with serving("model=tiny", runtime_directory=runtime) as (_, client):
        api = client_of(client)
        messages: list[Any] = [{"role": "user", "content": "Tell me a story about a fleet."}]
        num_before = 0
        for turn in range(3):
            answer = api.chat.completions.create(
                model="tiny", messages=messages, max_tokens=8, temperature=0
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached = answer.usage.prompt_tokens_details.cached_tokens
            # All of the turn before but for its last, partly filled block of 16.
            assert cached is not None
            assert cached >= num_before // 16 * 16
            assert cached > 0 or turn == 0
            num_before = answer.usage.prompt_tokens
            messages.append(answer.choices[0].message)
            messages.append({"role": "user", "content": "And then?"})


def test_choices_share_one_prefill_and_differ_by_their_seeds(runtime):
    with serving("model=tiny", "dp=2", runtime_directory=runtime) as (_, client):
        api = client_of(client)
        prompt = "Once upon a time there was a fleet. " * 4
        options: Any = {"model": "tiny", "prompt": prompt, "max_tokens": 12}
        answer = api.completions.create(**options, n=4, seed=11)
        # By each of the others, but for the last block of 16.
        num_shared = 3 * ((len(prompt) - 1) // 16 * 16)
        wait_for_cache_hits(client, num_shared)
        alone = [api.completions.create(**options, seed=11 + index) for index in range(4)]
        texts = [choice.text for choice in answer.choices]
        assert texts == [each.choices[0].text for each in alone]
        assert len(set(texts)) > 1
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(prompt)


def test_sampling_parameters_and_log_probabilities_of_a_real_model(runtime):
    with serving("model=tiny", runtime_directory=runtime) as (_, client):
        api = client_of(client).completions
        prompt = [*b"Once upon a time there was a fleet."]
        options: Any = {"model": "tiny", "temperature": 0, "max_tokens": 8}
        told = api.create(**options, prompt=prompt, logprobs=1).choices[0].logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert len(told.tokens) == 8
        for token, logprob, top in zip(
            told.tokens, told.token_logprobs, told.top_logprobs, strict=True
        ):
            assert top == {token: logprob}  # the likeliest: it is greedy

        # What is said of tokens of the answer is said of them in a prompt too.
        answered = [ord("x"), ord("y")]
        bias = {"logit_bias": {str(answered[0]): 100}, "max_tokens": 1}
        first = api.create(**options | bias, prompt=prompt, logprobs=0).choices[0]
        assert first.text == "x"
        echoed = api.create(
            **options | {"max_tokens": 1}, prompt=prompt + answered, logprobs=0, echo=True, n=2
        )
        assert first.logprobs is not None
        assert first.logprobs.token_logprobs is not None
        for choice in echoed.choices:
            assert choice.text.startswith("Once upon a time there was a fleet.xy")
            scores = choice.logprobs
            assert scores is not None
            assert scores.token_logprobs is not None
            assert scores.text_offset == list(range(len(prompt) + 3))
            assert scores.token_logprobs[0] is None
            assert scores.token_logprobs[len(prompt)] == pytest.approx(
                first.logprobs.token_logprobs[0], abs=1e-3
            )

        stopping = {"stop_token_ids": [ord("x")], "repetition_penalty": 1.2, "min_p": 0.1}
        forced = {"logit_bias": {str(ord("x")): 100, str(ord("z")): 90}, "priority": -1}
        least = api.create(
            **options, prompt=prompt, extra_body=stopping | forced | {"min_tokens": 3}
        )
        chosen: Any = least.choices[0]
        assert (chosen.text, chosen.stop_reason, chosen.finish_reason) == ("zzz", 120, "stop")
        assert least.usage is not None
        assert least.usage.completion_tokens == 4
        bounds = {"presence_penalty": 2.1, "min_p": 2, "stop_token_ids": [10**6]}
        for name, value in bounds.items():
            with pytest.raises(openai.BadRequestError) as caught:
                api.create(**options, prompt=prompt, extra_body={name: value})
            assert (caught.value.param or "").partition("[")[0] == name


def wait_for_cache_hits(client: Any, num_tokens: int) -> None:
    """Until so many prompt tokens are known to have been found in the ranks' caches."""
    deadline_s = time.monotonic() + 20
    while True:
        page = client.get("/metrics").text.splitlines()
        lines = [line for line in page if line.startswith("flotilla:prefix_cache_hits_total{")]
        if sum(float(line.split()[-1]) for line in lines) == num_tokens:
            return
        assert time.monotonic() < deadline_s, lines
