"""What the samplers take and give, by whatever they are computed."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

CHOICE = np.dtype(
    [
        ("noise", np.float64),
        ("temperature", np.float32),
        ("min_p", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int32),
    ]
)
"""How a row's token is chosen; `struct choice` of kernels/choice.h. Temperature 0: the best one.

Else the order is vLLM's: temperature, min_p, top_k, and top_p of what those leave; then one uniform
number decides, by the inverse of the cumulated probabilities.
"""

Choices = npt.NDArray[np.void]
"""[rows] of `CHOICE`."""


class Scores(NamedTuple):
    """Natural logarithms of probabilities."""

    own: torch.Tensor
    """[rows] of the tokens asked for."""
    top: torch.Tensor
    """[rows, num_top] of the best ones, the best first."""
    top_ids: torch.Tensor
    """[rows, num_top]."""


class Sampler(Protocol):
    """Chooses and scores tokens. What a row gives depends on that row alone."""

    def choose(self, logits: torch.Tensor, choices: Choices) -> torch.Tensor:
        """A token for each row of [rows, V] float32 logits: [rows].

        The first of equals. Any token where a row has NaN.
        """
        ...

    def score(self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> Scores:
        """Log-probabilities by [rows, V] float32 logits: of [rows] tokens, and of the best."""
        ...
