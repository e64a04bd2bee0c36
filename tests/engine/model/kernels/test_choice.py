"""Tokens chosen by the kernel, held against torch's choice."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.choice import CHOICE, Choices
from engine.model.kernels.binding import Library, Team
from engine.model.kernels.sampler import NativeSampler
from engine.model.torch_sampler import TorchSampler, kept_weights

GREEDY = (0.0, 0.0, 0.0, 1.0, 0)
SLACK = 1e-5
"""Exponentials and sums are rounded differently: near a border either token is right."""


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """The choice is the same kernel in the libraries of all types."""
    return torch.float32


def choose(
    logits: torch.Tensor, choices: list[tuple[Any, ...]], library: Library, team: Team
) -> list[int]:
    return NativeSampler(library, team).choose(logits, np.array(choices, dtype=CHOICE)).tolist()


@given(data=st.data())
def test_the_best_token_is_the_first_of_the_largest(library, teams, data):
    rows, size = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 700))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randint(-9, 9, (rows, size), generator=generator).float()  # many equals
    best = choose(logits, [GREEDY] * rows, library, teams[2])
    assert best == [row.tolist().index(max(row.tolist())) for row in logits]


def test_what_is_no_number_is_never_the_best(library, teams):
    logits = torch.full((4, 600), float("nan"))
    logits[1, 555] = -1e30
    logits[2, 3], logits[2, 300] = float("-inf"), 1.0
    logits[3, 599] = float("inf")
    assert choose(logits, [GREEDY] * 4, library, teams[2]) == [0, 555, 300, 599]


def test_what_is_no_number_is_never_drawn(library, teams):
    logits = torch.full((5, 600), float("nan"))
    logits[1, 555] = -1e30
    logits[2, 3], logits[2, 300] = float("-inf"), 1.0
    logits[3, 599] = float("inf")
    logits[4, 7:9] = 0.0
    drawn = choose(logits, [(0.7, 1.0, 0.0, 0.9, 5)] * 5, library, teams[2])
    assert drawn == [0, 555, 300, 599, 8]


choices = st.tuples(
    st.integers(0, 2**52 - 1).map(lambda bits: bits * 2.0**-52),  # noise
    st.just(0.0) | st.floats(0.125, 3, width=32),  # temperature
    st.just(0.0) | st.floats(0, 1, width=32),  # min_p
    st.just(1.0) | st.floats(0, 1, width=32),  # top_p
    st.just(0) | st.integers(1, 800),  # top_k
)


@given(data=st.data())
def test_it_is_the_token_that_torch_chooses(library, teams, data):
    size, rows = data.draw(st.integers(1, 700)), data.draw(st.lists(choices, min_size=1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn((len(rows), size), generator=generator) * data.draw(st.floats(0, 9))
    if data.draw(st.booleans()):
        logits.round_()  # many equals
    for row, token in enumerate(choose(logits, rows, library, teams[2])):
        if rows[row][1] > 0:
            assert is_right(token, logits[row], rows[row])
        else:
            assert token == logits[row].argmax()


def is_right(token: int, logits: torch.Tensor, choice: tuple[Any, ...]) -> bool:
    """Whether torch, with parameters that hardly differ, would choose the token."""
    noise, temperature, min_p, top_p, top_k = choice
    variants = [
        (noise, temperature, min_p * (1 + shift), top_p * (1 + other) if top_p < 1 else 1, top_k)
        for shift, other in product((0, -SLACK, SLACK), repeat=2)
    ]
    array: Choices = np.array(variants, dtype=CHOICE)
    weights = kept_weights(logits.repeat(len(array), 1), array).double()
    ends = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
    begins = ends - weights / weights.sum(-1, keepdim=True)
    is_near = (begins[:, token] <= noise + SLACK) & (ends[:, token] >= noise - SLACK)
    return bool((is_near & (weights[:, token] > 0)).any())


def test_a_large_vocabulary_gives_the_very_tokens_of_torch(library, teams):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((48, 49152), generator=generator) * 3
    filters = [(0.0, 1.0, 0), (0.0, 0.9, 0), (0.05, 1.0, 0), (0.0, 1.0, 50), (0.01, 0.8, 40)]
    rows = [
        (noise, 0.8, *filters[index % len(filters)])
        for index, noise in enumerate(torch.rand(48, generator=generator).tolist())
    ]
    expected = TorchSampler().choose(logits, np.array(rows, dtype=CHOICE)).tolist()
    assert choose(logits, rows, library, teams[2]) == expected


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_does_not_depend_on_threads_and_other_rows(library, teams, num_threads):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((20, 1000), generator=generator)
    rows = [
        (index / 20, 0.5 + index / 20, index % 3 * 0.01, 1 - index % 4 * 0.1, index % 5 * 9)
        for index in range(20)
    ]
    alone = [choose(logits[i : i + 1], rows[i : i + 1], library, teams[1])[0] for i in range(20)]
    assert choose(logits, rows, library, teams[num_threads]) == alone
