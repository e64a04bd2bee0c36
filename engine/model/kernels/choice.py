"""The choice of tokens by a kernel of ours: all rows in one call."""

import torch

from engine.model.choice import Choices
from engine.model.kernels.binding import Library, Team

_PIECE = 256


def native_choose(
    library: Library, team: Team, logits: torch.Tensor, choices: Choices
) -> torch.Tensor:
    """[rows, V] float32 logits to [rows] tokens."""
    rows, vocab_size = logits.shape
    assert logits.is_contiguous()  # the kernel reads plain memory
    assert logits.dtype == torch.float32
    assert len(choices) == rows
    tokens = torch.empty(rows, dtype=torch.int64)
    library.choose(
        logits.data_ptr(),
        choices.ctypes.data,
        tokens.data_ptr(),
        team.scratch(-(-vocab_size // _PIECE) * _PIECE * 4 * team.num_threads),
        rows,
        vocab_size,
        team.pool,
    )
    return tokens
