"""What the kernels' tests share: the kernels of every path and type, with --kernel-flags."""

import shlex

import pytest
import torch

from engine.model.kernels.binding import Library, Team
from engine.model.kernels.build import InstructionPath, usable_paths


@pytest.fixture(scope="session", params=usable_paths(), ids=lambda path: path.name)
def path(request) -> InstructionPath:
    """Each one that this processor has the instructions for."""
    return request.param


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def kernel_flags(request) -> tuple[str, ...]:
    return tuple(shlex.split(request.config.getoption("--kernel-flags")))


@pytest.fixture(scope="session")
def library(path: InstructionPath, dtype: torch.dtype, kernel_flags: tuple[str, ...]) -> Library:
    return Library(path, dtype, kernel_flags)


@pytest.fixture(scope="session")
def teams(library: Library) -> dict[int, Team]:
    """By the number of threads."""
    return {num_threads: Team(library, num_threads) for num_threads in (1, 2, 3)}
