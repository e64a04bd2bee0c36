"""Log-probabilities by the kernel, held against torch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.kernels.sampler import NativeSampler
from engine.model.torch_sampler import TorchSampler


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """It is the same kernel in the libraries of all types."""
    return torch.float32


@given(data=st.data())
def test_they_are_those_of_torch(library, teams, data):
    rows, size = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 9000))
    num_top = data.draw(st.integers(0, min(size, 20)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn((rows, size), generator=generator) * data.draw(st.floats(0, 30))
    logits += data.draw(st.floats(-100, 100))
    tokens = torch.randint(size, (rows,), generator=generator)
    ours = NativeSampler(library, teams[2]).score(logits, tokens, num_top)
    expected = TorchSampler().score(logits, tokens, num_top)
    torch.testing.assert_close(ours.own, expected.own, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.top, expected.top, atol=1e-4, rtol=1e-5)
    assert logits.gather(-1, ours.top_ids).equal(logits.gather(-1, expected.top_ids))


def test_of_equals_the_first_comes_first(library, teams):
    logits = torch.zeros((1, 700))
    logits[0, 650], logits[0, 300] = 1.0, 1.0
    scores = NativeSampler(library, teams[1]).score(logits, torch.tensor([0]), 4)
    assert scores.top_ids.tolist() == [[300, 650, 0, 1]]


def test_what_is_no_number_stays_in_its_row(library, teams):
    logits = torch.zeros((3, 700))
    logits[1] = float("nan")
    scores = NativeSampler(library, teams[2]).score(logits, torch.zeros(3, dtype=torch.int64), 20)
    assert scores.own[[0, 2]].isfinite().all()
    assert scores.top_ids[1].tolist() == list(range(20))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_does_not_depend_on_threads_and_other_rows(library, teams, num_threads):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((20, 1000), generator=generator)
    tokens = torch.arange(20)
    together = NativeSampler(library, teams[num_threads]).score(logits, tokens, 7)
    for row in range(20):
        part = slice(row, row + 1)
        alone = NativeSampler(library, teams[1]).score(logits[part], tokens[part], 7)
        assert all(one.equal(all_[part]) for one, all_ in zip(alone, together, strict=True))
