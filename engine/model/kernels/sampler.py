"""Tokens chosen and scored by kernels of ours: all rows in one call."""

import torch

from engine.model.choice import Choices, Scores
from engine.model.kernels.binding import Library, Team

_PIECE = 256


class NativeSampler:
    """Shares the threads and the scratch memory of the layers."""

    def __init__(self, library: Library, team: Team) -> None:
        self._library, self._team = library, team

    def choose(self, logits: torch.Tensor, choices: Choices) -> torch.Tensor:
        rows, vocab_size = _shape(logits)
        assert len(choices) == rows
        tokens = torch.empty(rows, dtype=torch.int64)
        self._library.choose(
            logits.data_ptr(),
            choices.ctypes.data,
            tokens.data_ptr(),
            self._team.scratch(-(-vocab_size // _PIECE) * _PIECE * 4 * self._team.num_threads),
            rows,
            vocab_size,
            self._team.pool,
        )
        return tokens

    def score(self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> Scores:
        rows, vocab_size = _shape(logits)
        assert token_ids.dtype == torch.int64
        assert token_ids.is_contiguous()
        assert num_top <= vocab_size
        own, top = torch.empty(rows), torch.empty((rows, num_top))
        top_ids = torch.empty((rows, num_top), dtype=torch.int64)
        self._library.score(
            logits.data_ptr(),
            token_ids.data_ptr(),
            own.data_ptr(),
            top.data_ptr(),
            top_ids.data_ptr(),
            rows,
            vocab_size,
            num_top,
            self._team.pool,
        )
        return Scores(own, top, top_ids)


def _shape(logits: torch.Tensor) -> torch.Size:
    assert logits.is_contiguous()  # the kernels read plain memory
    assert logits.dtype == torch.float32
    return logits.shape
