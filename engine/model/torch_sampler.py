"""Tokens chosen and scored by torch, on every device; kernels/choice.h does the same."""

import numpy as np
import numpy.typing as npt
import torch

from engine.model.choice import Choices, Scores


class TorchSampler:
    """Sorts whole rows where a filter is asked for."""

    def choose(self, logits: torch.Tensor, choices: Choices) -> torch.Tensor:
        return _choose(logits, choices)

    def score(self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> Scores:
        totals = logits.logsumexp(dim=-1, keepdim=True)
        own = logits.gather(-1, token_ids[:, None]) - totals
        top = logits.topk(num_top, dim=-1)
        return Scores(own[:, 0], top.values - totals, top.indices)


def _choose(logits: torch.Tensor, choices: Choices) -> torch.Tensor:
    # `max` was seen to take a quarter of `argmax`'s time.
    best = logits.max(dim=-1).indices
    is_random = choices["temperature"] > 0
    if not is_random.any():
        return best
    rows = torch.from_numpy(is_random.nonzero()[0]).to(logits.device)
    choices = choices[is_random]
    # In double precision and in the vocabulary's order for every row: a row's token may not depend
    # on the others.
    cumulated = kept_weights(logits.index_select(0, rows), choices).double().cumsum(dim=-1)
    noise = _column(choices["noise"], cumulated)
    drawn = torch.searchsorted(cumulated, noise * cumulated[:, -1:], right=True)
    return best.index_copy_(0, rows, drawn.clamp_(max=logits.shape[-1] - 1).squeeze(-1))


def kept_weights(logits: torch.Tensor, choices: Choices) -> torch.Tensor:
    """What the probabilities of a token are proportional to, 0 where a filter leaves it out.

    Args:
        logits: [rows, V] float32, of rows with temperatures above 0.
    """
    weights = torch.softmax(logits / _column(choices["temperature"], logits), dim=-1)
    least = _column(choices["min_p"], logits) * weights.amax(-1, keepdim=True)
    weights[weights < least] = 0
    is_filtered = (choices["top_p"] < 1) | (choices["top_k"] > 0)
    if is_filtered.any():
        rows = torch.from_numpy(is_filtered.nonzero()[0]).to(logits.device)
        kept = _keep_largest(weights.index_select(0, rows), choices[is_filtered])
        weights.index_copy_(0, rows, kept)
    return weights


def _keep_largest(weights: torch.Tensor, choices: Choices) -> torch.Tensor:
    """Zeroes what top_k and top_p leave out; the best token always stays. [rows, V]."""
    vocab_size = weights.shape[-1]
    in_order, order = weights.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab_size, device=weights.device)
    top_k = np.where(choices["top_k"] > 0, choices["top_k"], vocab_size)
    in_order[ranks >= _column(top_k, ranks)] = 0
    before = in_order.cumsum(dim=-1, dtype=torch.float64) - in_order
    top_p = _column(choices["top_p"], before)
    reach = top_p * in_order.sum(-1, keepdim=True, dtype=torch.float64)
    in_order[(before >= reach) & (top_p < 1) & (ranks > 0)] = 0
    return torch.zeros_like(weights).scatter_(-1, order, in_order)


def _column(values: npt.NDArray, like: torch.Tensor) -> torch.Tensor:
    """[rows, 1], of the type and on the device of `like`."""
    return torch.from_numpy(values.copy()).to(like.device, like.dtype)[:, None]
