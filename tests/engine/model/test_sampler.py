import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.sampler import sample, uniform
from engine.sampling import SamplingParams

BEST = partial(torch.argmax, dim=-1)
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, -2.0])


def draw(count: int, **options: Any) -> list[int]:
    """Tokens of one request's first outputs, the logits being the same for all."""
    params = SamplingParams(count, **{"temperature": 1.0, "seed": 7, **options})
    return sample(LOGITS.repeat(count, 1), [(params, index) for index in range(count)], BEST)


def chi_square(tokens: list[int], expected: torch.Tensor) -> float:
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    wanted = expected.double() * len(tokens)
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    return float(((counts - wanted) ** 2 / wanted)[possible].sum())


def test_temperature_zero_takes_the_best_token():
    assert draw(3, temperature=0.0) == [4, 4, 4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_frequent_as_the_softmax_says(temperature: float):
    expected = torch.softmax(LOGITS / temperature, dim=-1)
    assert (
        chi_square(draw(20_000, temperature=temperature), expected) < 20.5
    )  # 5 degrees, p = 0.001


def test_top_k_keeps_the_best_tokens_only():
    expected = torch.softmax(torch.tensor([2.0, 1.0, -math.inf, -math.inf, 3.0, -math.inf]), dim=-1)
    assert chi_square(draw(20_000, top_k=3), expected) < 13.8  # 2 degrees


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    # softmax: 0.64, 0.23, 0.09, ...: 0.7 takes the best two
    expected = torch.softmax(
        torch.tensor([2.0, -math.inf, -math.inf, -math.inf, 3.0, -math.inf]), -1
    )
    assert chi_square(draw(20_000, top_p=0.7), expected) < 10.8  # 1 degree


def test_the_best_token_survives_the_smallest_top_p():
    assert set(draw(50, top_p=1e-6)) == {4}


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_the_batch():
    params = SamplingParams(40, seed=11)
    other = SamplingParams(40, seed=12, top_p=0.9, top_k=4)
    greedy = SamplingParams(40, temperature=0.0)
    alone = [sample(LOGITS[None], [(params, index)], BEST)[0] for index in range(40)]
    mixed = [
        sample(LOGITS.repeat(3, 1), [(greedy, index), (params, index), (other, index)], BEST)[1]
        for index in range(40)
    ]
    assert mixed == alone


def test_another_seed_gives_other_tokens():
    assert draw(40, seed=1) != draw(40, seed=2)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_noise_is_in_the_unit_interval(seed: int, index: int):
    assert 0 <= uniform(seed, index) < 1


def test_noise_is_even():
    values = torch.tensor([uniform(seed, index) for seed in range(100) for index in range(100)])
    counts = torch.histc(values, 20, 0, 1)
    assert float(((counts - 500) ** 2 / 500).sum()) < 43.8  # 19 degrees, p = 0.001
