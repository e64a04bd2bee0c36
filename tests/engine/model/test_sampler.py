"""Distributions against the softmax, and what a row's token may depend on, by both choices."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.choice import Choices, Sampler
from engine.model.kernels.binding import Team, best_library
from engine.model.kernels.sampler import NativeSampler
from engine.model.logit_edits import LogitEdits, edits_of
from engine.model.sampler import Row, sample, uniform
from engine.model.torch_sampler import TorchSampler
from engine.sampling import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, -2.0])
LEFT_OUT = -math.inf


@pytest.fixture(scope="module", params=["native", "torch"])
def sampler(request) -> Sampler:
    if request.param == "torch":
        return TorchSampler()
    library = best_library(torch.float32)
    return NativeSampler(library, Team(library, 2))


def draw(sampler: Sampler, count: int, **options: Any) -> list[int]:
    """Tokens of one request's first outputs, the logits being the same for all."""
    params = SamplingParams(count, **{"temperature": 1.0, "seed": 7, **options})
    return sample(LOGITS.repeat(count, 1), [Row(params, i) for i in range(count)], sampler)[0]


def chi_square(tokens: list[int], logits: torch.Tensor | list[float]) -> float:
    """How far the tokens' frequencies are from the softmax; fails at an impossible token."""
    expected = torch.softmax(torch.as_tensor(logits), dim=-1)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    wanted = expected.double() * len(tokens)
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    return float(((counts - wanted) ** 2 / wanted)[possible].sum())


def test_temperature_zero_takes_the_best_token(sampler):
    assert draw(sampler, 3, temperature=0.0) == [4, 4, 4]


def test_a_tiny_temperature_is_greedy(sampler):
    assert draw(sampler, 3, temperature=1e-40) == [4, 4, 4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_frequent_as_the_softmax_says(sampler, temperature: float):
    tokens = draw(sampler, 20_000, temperature=temperature)
    assert chi_square(tokens, LOGITS / temperature) < 20.5  # 5 degrees, p = 0.001


def test_top_k_keeps_the_best_tokens_only(sampler):
    left = [2.0, 1.0, LEFT_OUT, LEFT_OUT, 3.0, LEFT_OUT]
    assert chi_square(draw(sampler, 20_000, top_k=3), left) < 13.8  # 2 degrees


def test_top_p_keeps_the_fewest_tokens_that_reach_it(sampler):
    # softmax: 0.64, 0.23, 0.09, ...: 0.7 takes the best two
    left = [2.0, LEFT_OUT, LEFT_OUT, LEFT_OUT, 3.0, LEFT_OUT]
    assert chi_square(draw(sampler, 20_000, top_p=0.7), left) < 10.8  # 1 degree


def test_min_p_keeps_what_is_likely_beside_the_best(sampler):
    # e^-1 = 0.37 and e^-2 = 0.14 of the best stay
    left = [2.0, 1.0, LEFT_OUT, LEFT_OUT, 3.0, LEFT_OUT]
    assert chi_square(draw(sampler, 20_000, min_p=0.1), left) < 13.8


def test_min_p_is_of_what_the_temperature_gives(sampler):
    # at temperature 2: e^-0.5, e^-1, e^-1.5 = 0.22
    left = torch.tensor([2.0, 1.0, 0.0, LEFT_OUT, 3.0, LEFT_OUT]) / 2
    assert chi_square(draw(sampler, 20_000, min_p=0.2, temperature=2.0), left) < 16.3  # 3 degrees


def test_top_p_is_of_what_top_k_leaves(sampler):
    # of the best three: 0.665, 0.245, 0.09; alone, 0.9 would take three tokens
    left = [2.0, LEFT_OUT, LEFT_OUT, LEFT_OUT, 3.0, LEFT_OUT]
    assert chi_square(draw(sampler, 20_000, top_k=3, top_p=0.9), left) < 10.8


def test_a_top_k_beyond_the_vocabulary_keeps_all(sampler):
    assert draw(sampler, 40, top_k=2**40) == draw(sampler, 40)


def test_all_filters_leave_the_best_token(sampler):
    assert set(draw(sampler, 50, top_p=1e-6)) == {4}
    assert set(draw(sampler, 50, top_k=1)) == {4}
    assert set(draw(sampler, 50, min_p=1.0)) == {4}


def mixed_rows() -> list[Row]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {},
        {"top_p": 0.9, "top_k": 4},
        {"min_p": 0.02, "logprobs": 3},
        {"temperature": 0.0, "logprobs": 0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "presence_penalty": -0.4, "top_p": 0.8, "logprobs": 5},
        {"logit_bias": {3: 4.0, 900: -100.0}, "min_tokens": 9},
    ]
    rows = []
    for index in range(42):
        params = SamplingParams(9, seed=index, **kinds[index % len(kinds)])
        edits = edits_of(params, prompt=range(index), eos_token_ids=[2])
        if edits is not None:
            for token in range(index % 5):
                edits.note(token)
        rows.append(Row(params, index, edits))
    return rows


def test_a_rows_outcome_is_the_same_bit_for_bit_whatever_else_is_in_the_batch(sampler):
    logits = torch.randn((42, 1000), generator=torch.Generator().manual_seed(0)) * 3
    rows = mixed_rows()
    tokens, logprobs, _ = sample(logits.clone(), rows, sampler)
    backwards = sample(logits.flip(0), rows[::-1], sampler)
    for index, row in enumerate(rows):
        [token], alone, _ = sample(logits[index : index + 1].clone(), [row], sampler)
        assert token == tokens[index] == backwards[0][41 - index]
        assert alone.get(0) == logprobs.get(index) == backwards[1].get(41 - index)


def test_another_seed_gives_other_tokens(sampler):
    assert draw(sampler, 40, seed=1) != draw(sampler, 40, seed=2)


tokens = st.integers(0, 59)
penalties = st.floats(-2, 2)


@given(
    prompt=st.lists(tokens),
    outputs=st.lists(tokens, max_size=90),
    frequency=st.just(0.0) | penalties,
    presence=st.just(0.0) | penalties,
    repetition=st.just(1.0) | st.floats(0.25, 3),
    bias=st.dictionaries(tokens, st.floats(-100, 100)),
    min_tokens=st.just(0) | st.integers(0, 80),
)
def test_logits_are_edited_as_by_hand(
    prompt, outputs, frequency, presence, repetition, bias, min_tokens
):
    params = SamplingParams(
        99,
        temperature=0.0,
        min_tokens=min_tokens,
        stop_token_ids=(7, 8),
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    edits = LogitEdits(params, prompt, eos_token_ids=[0, 8])
    for token in outputs:
        edits.note(token)
    logits = torch.linspace(-3, 3, 60)
    seen: list[torch.Tensor] = []

    class Spy(TorchSampler):
        def choose(self, logits: torch.Tensor, choices: Choices) -> torch.Tensor:
            seen.append(logits.clone())
            return super().choose(logits, choices)

    rows = [Row(params, len(outputs), each) for each in (None, edits, None)]
    sample(logits.repeat(3, 1), rows, Spy())
    expected = [
        edited_by_hand(token, float(logit), params, prompt, outputs)
        for token, logit in enumerate(logits)
    ]
    assert seen[0][1].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert seen[0][0].equal(logits)
    assert seen[0][2].equal(logits)


def edited_by_hand(
    token: int, logit: float, params: SamplingParams, prompt: list[int], outputs: list[int]
) -> float:
    logit += params.logit_bias.get(token, 0)
    if token in (0, 7, 8) and len(outputs) < params.min_tokens:
        return -math.inf
    if token in prompt or token in outputs:
        repetition = params.repetition_penalty
        logit = logit / repetition if logit > 0 else logit * repetition
    logit -= params.frequency_penalty * outputs.count(token)
    return logit - (params.presence_penalty if token in outputs else 0)


def test_parameters_that_change_no_logits_cost_nothing():
    params = SamplingParams(9, top_p=0.5, min_p=0.1, stop_token_ids=(3,), logprobs=2)
    assert edits_of(params, [1, 2], [0]) is None


def test_log_probabilities_are_the_models_own(sampler):
    params = SamplingParams(1, temperature=0.0, logprobs=2, logit_bias={3: 100.0})
    [token], logprobs, _ = sample(
        LOGITS[None].clone(), [Row(params, 0, edits_of(params, [], []))], sampler
    )
    expected = torch.log_softmax(LOGITS, dim=-1)
    assert token == 3
    assert logprobs[0].logprob == pytest.approx(float(expected[3]), abs=1e-6)
    assert logprobs[0].top_ids == [4, 0]
    assert logprobs[0].top_logprobs == pytest.approx(expected[[4, 0]].tolist(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_rows_without_finite_logits_have_failed(sampler, what: float, temperature: float):
    logits = LOGITS.repeat(4, 1)
    logits[1], logits[3] = what, what
    params = SamplingParams(4, temperature=temperature, logprobs=1)
    edits = edits_of(SamplingParams(1, logit_bias={3: 5.0}, min_tokens=4), [], [1])
    sampled = sample(logits, [Row(params, i, edits if i > 1 else None) for i in range(4)], sampler)
    assert sampled.failed == [1, 3]
    assert all(0 <= token < len(LOGITS) for token in sampled.token_ids)
    expected = sample(LOGITS[None].clone(), [Row(params, 0)], sampler)
    assert sampled.token_ids[0] == expected.token_ids[0]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_noise_is_in_the_unit_interval(seed: int, index: int):
    assert 0 <= uniform(seed, index) < 1


def test_noise_is_even():
    values = torch.tensor([uniform(seed, index) for seed in range(100) for index in range(100)])
    counts = torch.histc(values, 20, 0, 1)
    assert float(((counts - 500) ** 2 / 500).sum()) < 43.8  # 19 degrees, p = 0.001


@pytest.mark.parametrize("neighbour", [(1, 0), (0, 1), (1, 1), (1, -1)])
def test_noise_says_nothing_of_that_of_the_next_seed_or_output(neighbour: tuple[int, int]):
    counts = torch.zeros(10, 10)
    for seed in range(100):
        for index in range(1, 101):
            own, other = uniform(seed, index), uniform(seed + neighbour[0], index + neighbour[1])
            counts[int(own * 10), int(other * 10)] += 1
    assert float(((counts - 100) ** 2 / 100).sum()) < 148.2  # 99 degrees, p = 0.001
