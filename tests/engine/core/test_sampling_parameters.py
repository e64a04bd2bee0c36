"""Sampling parameters through a whole engine core: log-probabilities, stops, penalties."""

import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.checkpoints.tiny import write_random_checkpoint
from engine.config import Kernels
from engine.core.engine_core import EngineCore
from engine.core.request import RequestRefused
from engine.core.scheduler import Produced
from engine.model.facts import ModelFacts
from engine.protocol import (
    ENCODER,
    ENGINE_OUTPUTS,
    AddRequest,
    EngineOutputs,
    FinishReason,
    RequestOutput,
)
from engine.sampling import SamplingParams, TokenLogprobs
from tests.engine.greedy import make_core
from tests.engine.settings import dummy_settings, make_settings

EOS = 2
POISON = 300
NEAR = 1e-3
"""Natural logarithms, float32 here and in transformers."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    facts = ModelFacts(
        architecture="LlamaForCausalLM",
        vocab_size=320,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_ids=(EOS,),
    )
    path = tmp_path_factory.mktemp("model")
    write_random_checkpoint(path, facts, seed=3)
    return path


@pytest.fixture(scope="module")
def poisoned(directory: Path, tmp_path_factory) -> Path:
    """The same model, but one token has an embedding of no numbers."""
    path = tmp_path_factory.mktemp("poisoned")
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = math.nan
    shutil.copy(directory / "config.json", path)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["native", "torch"])
def core(request, directory: Path) -> EngineCore:
    return make_core(make_settings(directory, kernels=Kernels[request.param]), directory)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 320) for _ in range(length)]


def run(
    core: EngineCore, requests: list[tuple[list[int], SamplingParams]]
) -> list[list[RequestOutput]]:
    """The outputs of requests that arrive at once, as they come over the wire."""
    for index, (prompt, sampling) in enumerate(requests):
        core.add_request("test", AddRequest(index, index, prompt, sampling))
    outputs: list[list[RequestOutput]] = [[] for _ in requests]
    while core.num_requests:
        for output in over_the_wire(core.step()):
            outputs[output.request_id].append(output)
    return outputs


def over_the_wire(produced: list[Produced]) -> list[RequestOutput]:
    message = EngineOutputs(0, 0, 0, 0, [item.output() for item in produced])
    return ENGINE_OUTPUTS.decode(ENCODER.encode(message)).outputs


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@torch.inference_mode()
def check_logprobs(
    reference: Any, prompt: list[int], outputs: list[RequestOutput], num_top: int
) -> None:
    """Holds all log-probabilities of a request against transformers'."""
    tokens = [*prompt, *tokens_of(outputs)]
    expected = torch.log_softmax(reference(torch.tensor([tokens])).logits[0], dim=-1)
    told = [*outputs[0].prompt_logprobs, *(each for output in outputs for each in output.logprobs)]
    assert len(told) == len(tokens) - 1
    for position, (token, scores) in enumerate(zip(tokens[1:], told, strict=True)):
        check_scores(scores, token, expected[position], num_top)


def check_scores(scores: TokenLogprobs, token: int, expected: torch.Tensor, num_top: int) -> None:
    assert scores.logprob == pytest.approx(float(expected[token]), abs=NEAR)
    assert len(scores.top_ids) == len(scores.top_logprobs) == num_top
    assert scores.top_logprobs == pytest.approx(expected[scores.top_ids].tolist(), abs=NEAR)
    assert scores.top_logprobs == pytest.approx(expected.topk(num_top).values.tolist(), abs=NEAR)


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_log_probabilities_agree_with_transformers(core, reference, num_top):
    sampling = SamplingParams(
        12,
        temperature=0.7,
        top_p=0.8,
        seed=5,
        ignore_eos=True,
        repetition_penalty=1.2,
        logprobs=num_top,
        prompt_logprobs=num_top,
    )
    prompts = [prompt_of(length, length) for length in (1, 2, 40, 150)]
    plain = (prompt_of(30), SamplingParams(12, temperature=0.0))
    outputs = run(core, [*((prompt, sampling) for prompt in prompts), plain])
    for prompt, output in zip(prompts, outputs, strict=False):
        check_logprobs(reference, prompt, output, num_top)
    assert all(not each.logprobs and not each.prompt_logprobs for each in outputs[-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_batched_tokens": 7, "max_num_seqs": 4},
        {"max_model_len": 176, "cache": {"num_blocks": 12}},
    ],
    ids=["chunked", "preempted"],
)
def test_prompts_are_scored_whole_however_they_are_computed(directory, reference, changes):
    core = make_core(make_settings(directory, **changes), directory)
    sampling = SamplingParams(40, temperature=0.0, ignore_eos=True, logprobs=2, prompt_logprobs=2)
    prompts = [prompt_of(length, length) for length in (50, 61, 90, 33)]
    for prompt, outputs in zip(
        prompts, run(core, [(prompt, sampling) for prompt in prompts]), strict=True
    ):
        check_logprobs(reference, prompt, outputs, 2)
    assert (core.num_preemptions > 0) == ("cache" in changes)


def test_a_prompt_that_is_in_the_cache_is_scored_all_the_same(core, reference):
    prompt = prompt_of(100, 77)
    plain = SamplingParams(2, temperature=0.0)
    scored = SamplingParams(2, temperature=0.0, logprobs=1, prompt_logprobs=1)
    run(core, [(prompt, plain)])
    [again] = run(core, [(prompt, plain)])
    assert again[0].num_cached_tokens == 96
    [outputs] = run(core, [(prompt, scored)])
    assert outputs[0].num_cached_tokens == 0
    check_logprobs(reference, prompt, outputs, 1)


def test_equal_prompts_that_arrive_together_are_computed_once(core):
    prompt = prompt_of(100, 78)
    sampling = [SamplingParams(20, seed=seed, ignore_eos=True) for seed in range(4)]
    together = run(core, [(prompt, each) for each in sampling])
    assert [outputs[0].num_cached_tokens for outputs in together] == [0, 96, 96, 96]
    for each, outputs in zip(sampling, together, strict=True):
        [alone] = run(core, [(prompt, each)])
        assert tokens_of(alone) == tokens_of(outputs)


def test_the_same_seed_gives_the_same_tokens_beside_any_others(core):
    wanted = (prompt_of(20), SamplingParams(30, top_p=0.9, seed=3, ignore_eos=True))
    others = [
        (prompt_of(10 + 7 * index, index), SamplingParams(30, seed=index, min_p=0.1, logprobs=3))
        for index in range(6)
    ]
    [alone] = run(core, [wanted])
    assert tokens_of(run(core, [*others, wanted])[-1]) == tokens_of(alone)


def test_a_stop_token_ends_a_request_and_is_named(core):
    prompt = prompt_of(20)
    greedy = tokens_of(run(core, [(prompt, SamplingParams(10, temperature=0.0))])[0])
    stop = greedy[4]
    sampling = SamplingParams(10, temperature=0.0, ignore_eos=True, stop_token_ids=(300, stop))
    [outputs] = run(core, [(prompt, sampling)])
    assert tokens_of(outputs) == greedy[: greedy.index(stop) + 1]
    assert outputs[-1].finish_reason is FinishReason.stop
    assert outputs[-1].stop_token_id == stop


def test_neither_end_nor_stop_tokens_come_before_the_least_number(core):
    prompt = prompt_of(20)
    stop = tokens_of(run(core, [(prompt, SamplingParams(1, temperature=0.0))])[0])[0]
    bias = {EOS: 80.0, stop: 90.0}  # likelier than any other whenever they are possible
    for num in (0, 1, 7):
        sampling = SamplingParams(
            20, temperature=0.0, min_tokens=num, stop_token_ids=(stop,), logit_bias=bias
        )
        [outputs] = run(core, [(prompt, sampling)])
        assert len(outputs) == num + 1
        assert EOS not in tokens_of(outputs)
        assert stop not in tokens_of(outputs)[:-1]
        assert outputs[-1].stop_token_id == stop


def test_an_end_token_of_the_model_is_not_named(core):
    sampling = SamplingParams(5, stop_token_ids=(EOS,), logit_bias={EOS: 100.0})
    [outputs] = run(core, [(prompt_of(9), sampling)])
    assert outputs[-1].finish_reason is FinishReason.stop
    assert outputs[-1].stop_token_id is None


def test_penalties_see_all_outputs_through_preemption(directory):
    sampling = SamplingParams(
        60, temperature=0.0, ignore_eos=True, frequency_penalty=1.5, repetition_penalty=1.3
    )
    prompts = [prompt_of(length, length) for length in (50, 61, 90)]
    roomy = make_core(make_settings(directory), directory)
    alone = [tokens_of(run(roomy, [(prompt, sampling)])[0]) for prompt in prompts]
    tight = make_core(
        make_settings(directory, max_model_len=176, cache={"num_blocks": 14}), directory
    )
    together = run(tight, [(prompt, sampling) for prompt in prompts])
    assert tight.num_preemptions > 0
    assert [tokens_of(outputs) for outputs in together] == alone


@pytest.mark.parametrize("parameter", [{"stop_token_ids": (320,)}, {"logit_bias": {-1: 1.0}}])
def test_token_ids_that_the_vocabulary_does_not_have_are_refused(core, parameter):
    with pytest.raises(RequestRefused, match="must be between 0 and 319"):
        core.add_request("test", AddRequest(0, 0, [5], SamplingParams(1, **parameter)))
    assert core.num_requests == 0


def test_what_is_no_number_ends_its_request_with_an_error_and_no_other(poisoned, core, request):
    kernels = Kernels[request.node.callspec.params["core"]]
    broken = make_core(make_settings(poisoned, kernels=kernels), poisoned)
    clean, other = ([token for token in prompt_of(60, seed) if token != POISON] for seed in (5, 6))
    sampling = SamplingParams(20, seed=4, ignore_eos=True, logit_bias={POISON: -100.0})
    scored = SamplingParams(9, temperature=0.0, logprobs=2, prompt_logprobs=1)
    [alone] = run(core, [(clean, sampling)])
    for _ in range(2):  # the second time nothing of the first is found
        first, second, third = run(
            broken, [([*other, POISON], scored), (clean, sampling), ([POISON] * 40, sampling)]
        )
        assert tokens_of(second) == tokens_of(alone)
        for failed in (first, third):
            [output] = failed
            assert output.finish_reason is FinishReason.error
            assert not output.token_ids
            assert not output.logprobs
            assert not output.prompt_logprobs
            assert "logits are not finite, computed in float32" in output.error
            assert output.num_cached_tokens == 0
    assert broken.num_requests == 0
    counted = {value.name: value for value in broken.metrics().values()}
    assert counted["generation_tokens"].value == 40
    assert sum(counted["time_to_first_token_seconds"].counts) == 2
    assert counted["request_generation_tokens"].value == 40


def test_what_is_no_number_in_a_prompt_that_was_given_up_spoils_no_other(poisoned, core, request):
    """Its blocks are given to the next one, which fills the last of them in part."""
    kernels = Kernels[request.node.callspec.params["core"]]
    limits = {"cache": {"num_blocks": 6}, "max_num_batched_tokens": 32, "max_num_seqs": 8}
    broken = make_core(make_settings(poisoned, kernels=kernels, **limits), poisoned)
    clean = [token for token in prompt_of(60, 5) if token != POISON]
    sampling = SamplingParams(20, seed=4, ignore_eos=True, logit_bias={POISON: -100.0})
    [alone] = run(core, [(clean, sampling)])
    broken.add_request("test", AddRequest(0, 0, [POISON] * 90, sampling))
    for _ in range(2):
        assert not broken.step()
    broken.end_request("test", 0, FinishReason.abort)
    [outputs] = run(broken, [(clean, sampling)])
    assert tokens_of(outputs) == tokens_of(alone)


def test_the_runner_that_computes_nothing_tells_log_probabilities_too():
    from engine.model.dummy_runner import DummyRunner

    core = EngineCore(dummy_settings(), DummyRunner())
    [outputs] = run(core, [([5, 6, 7], SamplingParams(2, logprobs=3, prompt_logprobs=0))])
    assert outputs[0].prompt_logprobs == [TokenLogprobs(0.0)] * 2
    assert outputs[1].logprobs == [TokenLogprobs(0.0, [ord("b")], [0.0])]
