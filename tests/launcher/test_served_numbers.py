"""Log-probabilities and seeds over HTTP, from real processes: the numbers are the model's own."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.checkpoints.tiny import TINY_FACTS, write_random_checkpoint
from tests.running import serving

pytestmark = pytest.mark.timeout(180)
NEAR = 1e-3
PROMPT = [*b"Once upon a time there was a fleet."]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    write_random_checkpoint(path, TINY_FACTS, seed=5)
    return path


def client_of(client: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


def overrides_of(directory: Path) -> tuple[str, ...]:
    return ("model=path", f"model.path={directory}", "model.name=m")


@torch.inference_mode()
def reference(directory: Path, tokens: list[int]) -> torch.Tensor:
    """What each token says of the next: log-probabilities [tokens, V]."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_log_probabilities_are_those_of_transformers(runtime, directory: Path, kernels: str):
    options = (*overrides_of(directory), f"engine.kernels={kernels}", "engine.dtype=float32")
    with serving(*options, runtime_directory=runtime) as (_, client):
        api: Any = client_of(client)
        sampling: dict[str, Any] = {"model": "m", "seed": 3, "temperature": 1.3, "max_tokens": 30}
        extra = {"repetition_penalty": 1.2, "ignore_eos": True}
        (choice,) = api.completions.create(
            prompt=PROMPT, echo=True, logprobs=5, **sampling, extra_body=extra
        ).choices
        scored = api.completions.create(
            model="m", prompt=PROMPT, echo=True, logprobs=5, max_tokens=0
        )
        chat = api.chat.completions.create(
            messages=[{"role": "user", "content": "Hi"}],
            logprobs=True,
            top_logprobs=5,
            **sampling,
        )
        turn = {"messages": [{"role": "user", "content": "Hi"}]}
        rendered = client.post("/tokenize", json=turn).json()["tokens"]
    told = choice.logprobs
    assert len(told.tokens) == len(PROMPT) + 30
    tokens = [id_of(name) for name in told.tokens]
    assert tokens[: len(PROMPT)] == PROMPT
    expected = reference(directory, tokens)
    assert told.token_logprobs[0] is None
    for place, token in enumerate(tokens[1:], start=1):
        row = expected[place - 1]
        assert told.token_logprobs[place] == pytest.approx(float(row[token]), abs=NEAR)
        top = told.top_logprobs[place]
        best = {id_of(name): value for name, value in top.items()}
        assert len(best) in (5, 6)
        assert best[token] == told.token_logprobs[place]
        assert sorted(best.values())[-5:] == pytest.approx(
            sorted(row.topk(5).values.tolist()), abs=NEAR
        )
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        told.token_logprobs[1 : len(PROMPT)], abs=NEAR
    )
    assert scored.usage.completion_tokens == 0
    content = chat.choices[0].logprobs.content
    answer = [id_of(each.token) for each in content]
    expected = reference(directory, rendered + answer)[len(rendered) - 1 :]
    for each, token, row in zip(content, answer, expected, strict=False):
        assert each.logprob == pytest.approx(float(row[token]), abs=NEAR)
        top = [other.logprob for other in each.top_logprobs]
        assert top == pytest.approx(row.topk(5).values.tolist(), abs=NEAR)
        assert each.bytes == ([token] if token < 256 else [*each.token.encode()])


def id_of(name: str) -> int:
    """Of a token of the tiny model, by the name that log-probabilities give it."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    if name in specials:
        return 256 + specials.index(name)
    if name.startswith("bytes:\\x"):
        return int(name.removeprefix("bytes:\\x"), 16)
    (number,) = name.encode()
    return number


def test_a_seed_gives_the_same_text_on_any_rank_beside_any_others(runtime, directory: Path):
    texts = []
    options: dict[str, Any] = {
        "model": "m",
        "prompt": PROMPT,
        "max_tokens": 40,
        "seed": 17,
        "top_p": 0.95,
        "extra_body": {"ignore_eos": True},
    }
    for dp in (1, 2):
        with serving(*overrides_of(directory), f"dp={dp}", runtime_directory=runtime) as (_, found):
            api: Any = client_of(found).completions
            ranks = [{}, *({"X-Data-Parallel-Rank": str(rank)} for rank in range(dp))]

            def ask(headers: dict[str, str], api: Any = api) -> str:
                answer = api.create(**options, extra_headers=headers)
                return str(answer.choices[0].text)

            def disturb(seed: int, api: Any = api) -> None:
                api.create(model="m", prompt=PROMPT[seed:], max_tokens=30, seed=seed, n=3)

            texts += [ask(headers) for headers in ranks]
            with ThreadPoolExecutor(16) as pool:
                others = [pool.submit(disturb, seed) for seed in range(8)]
                texts += pool.map(ask, 3 * ranks)
                for other in others:
                    other.result()
    assert len(texts) == 4 * 2 + 4 * 3
    assert len(set(texts)) == 1


def test_what_is_no_number_is_an_error_and_not_text(runtime, directory: Path, tmp_path: Path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][ord("x")] = math.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with serving(*overrides_of(tmp_path), runtime_directory=runtime) as (_, client):
        api = client_of(client).completions
        with pytest.raises(openai.InternalServerError, match="logits are not finite") as caught:
            api.create(model="m", prompt="Oxen")
        assert caught.value.code == "engine_failed"
        with pytest.raises(openai.APIError, match="logits are not finite"):
            list(api.create(model="m", prompt="Oxen", stream=True))
        biased = {"logit_bias": {str(ord("x")): -100}, "max_tokens": 20, "temperature": 0}
        answer: Any = api.create(model="m", prompt="Once", **biased)  # type: ignore[call-overload]
        assert answer.usage.completion_tokens == 20
