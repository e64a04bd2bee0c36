"""Chooses the next token of each row: edits the logits, then all rows in one go.

One uniform number decides a row, and it is a function of (seed, output index) alone, so that a
request gives the same text whatever else is in its batch, and goes on with the same text on another
rank.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from engine.model.choice import CHOICE, Choices, Sampler
from engine.model.logit_edits import LogitEdits, join_edits
from engine.model.logprobs import token_logprobs
from engine.sampling import GREEDY_BELOW, SamplingParams, TokenLogprobs

_MASK = (1 << 64) - 1
_MAX_TOP_K = (1 << 31) - 1


class Sampled(NamedTuple):
    """What was chosen."""

    token_ids: list[int]
    """Of each row."""
    logprobs: dict[int, TokenLogprobs]
    """By row, where they are asked for."""
    failed: list[int]
    """Rows of which the model has made no finite logits: their token means nothing."""


class Row(NamedTuple):
    """What is wanted of a row of logits."""

    sampling: SamplingParams
    output_index: int
    edits: LogitEdits | None = None


def sample(logits: torch.Tensor, rows: Sequence[Row], sampler: Sampler) -> Sampled:
    """A token for each row of logits.

    Args:
        logits: [rows, V] float32, overwritten.
    """
    num_top = {
        index: row.sampling.logprobs
        for index, row in enumerate(rows)
        if row.sampling.logprobs is not None
    }
    raw, asked = logits, torch.tensor(list(num_top), device=logits.device)
    if num_top and (len(num_top) < len(rows) or any(row.edits is not None for row in rows)):
        raw = logits.index_select(0, asked)  # before the edits
    _edit(logits, rows)
    tokens = sampler.choose(logits, _choices(rows))
    # A hidden state that is no number makes none of all its logits, the chosen one among them.
    chosen = logits.gather(-1, tokens[:, None])[:, 0].tolist()
    failed = [row for row, logit in enumerate(chosen) if not math.isfinite(logit)]
    if not num_top:
        return Sampled(tokens.tolist(), {}, failed)
    scores = token_logprobs(raw, tokens.index_select(0, asked), list(num_top.values()), sampler)
    return Sampled(tokens.tolist(), dict(zip(num_top, scores, strict=True)), failed)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1), a function of its arguments alone.

    It has 52 random bits, so that u * total < total in double precision.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, 2014), applied to both arguments in turn.
    """
    return (_mix(_mix(seed & _MASK) ^ (index & _MASK)) >> 12) * 2.0**-52


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _choices(rows: Sequence[Row]) -> Choices:
    return np.array([_choice(row.sampling, row.output_index) for row in rows], dtype=CHOICE)


def _choice(params: SamplingParams, output_index: int) -> tuple[float, float, float, float, int]:
    if params.temperature < GREEDY_BELOW:
        return 0.0, 0.0, 0.0, 1.0, 0
    noise = uniform(params.seed, output_index)
    return noise, params.temperature, params.min_p, params.top_p, min(params.top_k, _MAX_TOP_K)


def _edit(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Applies the rows' biases, then their penalties, in place. A place comes once at most."""
    joined = join_edits([(row.edits, row.output_index) for row in rows], logits.shape[-1])
    if joined is None:
        return
    places, biases, penalty_places, counts, penalties = (
        torch.from_numpy(array).to(logits.device) for array in joined
    )
    flat = logits.view(-1)
    flat[places] += biases
    repetition, frequency, presence = penalties
    seen = flat[penalty_places]
    seen = torch.where(seen > 0, seen / repetition, seen * repetition)
    flat[penalty_places] = seen - frequency * counts - presence * (counts > 0)
