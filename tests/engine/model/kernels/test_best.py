"""The index of each row's largest logit, by the kernel."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.kernels.binding import Library, Team


def best_of(logits: torch.Tensor, library: Library, team: Team) -> list[int]:
    best = torch.empty(len(logits), dtype=torch.int64)
    library.best(logits.data_ptr(), best.data_ptr(), *logits.shape, team.pool)
    return best.tolist()


@given(data=st.data())
def test_it_is_the_first_of_the_largest(library, dtype, teams, data):
    rows, size = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 700))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randint(-9, 9, (rows, size), generator=generator).to(dtype)  # many equals
    best = best_of(logits, library, teams[2])
    assert best == [row.tolist().index(max(row.tolist())) for row in logits]


def test_what_is_no_number_is_never_the_largest(library, dtype, teams):
    logits = torch.full((4, 600), float("nan"), dtype=dtype)
    logits[1, 555] = -1e30
    logits[2, 3], logits[2, 300] = float("-inf"), 1.0
    logits[3, 599] = float("inf")
    assert best_of(logits, library, teams[2]) == [0, 555, 300, 599]
