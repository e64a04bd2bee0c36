"""The index of each row's largest logit, by the kernel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.kernels.build import InstructionPath, usable_paths
from engine.model.kernels.library import Library, Team

DTYPES = [torch.float32, torch.bfloat16]


def best_of(logits: torch.Tensor, path: InstructionPath) -> list[int]:
    library = Library(path, logits.dtype)
    team = Team(library, 2)
    best = torch.empty(len(logits), dtype=torch.int64)
    library.best(logits.data_ptr(), best.data_ptr(), *logits.shape, team.pool)
    return best.tolist()


@pytest.mark.parametrize("path", usable_paths(), ids=lambda path: path.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_it_is_the_first_of_the_largest(path, dtype, data):
    rows, size = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 700))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randint(-9, 9, (rows, size), generator=generator).to(dtype)  # many equals
    assert best_of(logits, path) == [row.tolist().index(max(row.tolist())) for row in logits]


@pytest.mark.parametrize("path", usable_paths(), ids=lambda path: path.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_is_never_the_largest(path, dtype):
    logits = torch.full((4, 600), float("nan"), dtype=dtype)
    logits[1, 555] = -1e30
    logits[2, 3], logits[2, 300] = float("-inf"), 1.0
    logits[3, 599] = float("inf")
    assert best_of(logits, path) == [0, 555, 300, 599]
