"""What changes a request's logits before a token is chosen: bias, bans and penalties.

Few tokens of a vocabulary are concerned, so a request keeps lists of them, which grow with its
outputs, and a step joins the lists of its rows: no tensor as wide as the vocabulary, no call per
request. Without torch.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.sampling import SamplingParams

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_NOTHING = (np.empty(0, np.int64), np.empty(0, np.float32))


class LogitEdits:
    """The edits of one request.

    Attributes:
        penalties: Repetition, frequency and presence penalty.
    """

    def __init__(
        self, sampling: SamplingParams, prompt: Iterable[int], eos_token_ids: Collection[int]
    ) -> None:
        self._min_tokens = sampling.min_tokens
        self._biases = _arrays(sampling.logit_bias)
        banned = dict.fromkeys((*eos_token_ids, *sampling.stop_token_ids), -math.inf)
        self._first_biases = _arrays({**sampling.logit_bias, **banned})
        self.penalties = (
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        self._is_penalised = self.penalties != (1.0, 0.0, 0.0)
        self._places: dict[int, int] = {}
        self._tokens, self._counts = np.empty(16, np.int64), np.empty(16, np.float32)
        if sampling.repetition_penalty != 1:
            for token_id in prompt:
                self._place(token_id)

    def note(self, token_id: int) -> None:
        """Takes a new output."""
        if self._is_penalised:
            place = self._place(token_id)
            self._counts[place] += 1

    def biases(self, output_index: int) -> tuple[Ints, Floats]:
        """Tokens, each once, and what is added to their logits."""
        return self._first_biases if output_index < self._min_tokens else self._biases

    def seen(self) -> tuple[Ints, Floats]:
        """Tokens to penalise, each once, and how often each is among the outputs."""
        size = len(self._places)
        return self._tokens[:size], self._counts[:size]

    def _place(self, token_id: int) -> int:
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._tokens):
                self._tokens = np.resize(self._tokens, 2 * place)
                self._counts = np.resize(self._counts, 2 * place)
            self._tokens[place], self._counts[place] = token_id, 0
        return place


def edits_of(
    sampling: SamplingParams, prompt: Iterable[int], eos_token_ids: Collection[int]
) -> LogitEdits | None:
    """The edits that the parameters ask for; None: the logits stay as they are."""
    if (
        sampling.logit_bias
        or sampling.min_tokens
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1
    ):
        return LogitEdits(sampling, prompt, eos_token_ids)
    return None


class JoinedEdits(NamedTuple):
    """The edits of all rows of a step. Places are indices into [rows, V] logits, flattened."""

    bias_places: Ints
    biases: Floats
    penalty_places: Ints
    counts: Floats
    """How often each place's token is among its request's outputs."""
    penalties: Floats
    """[3, places]."""


def join_edits(
    rows: Sequence[tuple[LogitEdits | None, int]], vocab_size: int
) -> JoinedEdits | None:
    """Joins each row's edits, given with its output index. None: there are none."""
    edited = [
        (row * vocab_size, edits, index)
        for row, (edits, index) in enumerate(rows)
        if edits is not None
    ]
    if not edited:
        return None
    biases = [edits.biases(index) for _, edits, index in edited]
    seen = [edits.seen() for _, edits, _ in edited]
    begins = np.array([begin for begin, _, _ in edited])
    lengths = [len(tokens) for tokens, _ in seen]
    penalties = np.array([edits.penalties for _, edits, _ in edited], dtype=np.float32)
    return JoinedEdits(
        bias_places=np.concatenate([tokens for tokens, _ in biases])
        + np.repeat(begins, [len(tokens) for tokens, _ in biases]),
        biases=np.concatenate([values for _, values in biases]),
        penalty_places=np.concatenate([tokens for tokens, _ in seen]) + np.repeat(begins, lengths),
        counts=np.concatenate([counts for _, counts in seen]),
        penalties=np.repeat(penalties, lengths, axis=0).T.copy(),
    )


def _arrays(biases: dict[int, float]) -> tuple[Ints, Floats]:
    if not biases:
        return _NOTHING
    return np.array(list(biases), np.int64), np.array(list(biases.values()), np.float32)
