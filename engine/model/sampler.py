"""Chooses next tokens: greedy rows by argmax, the others by the inverse of the cumulated probabilities.

One uniform number decides a row, and it is a function of (seed, output index) alone, so that a request gives the same
text whatever else is in its batch, and goes on with the same text on another rank.
"""

from collections.abc import Sequence

import torch

from engine.sampling import SamplingParams

_MASK = (1 << 64) - 1


def sample(logits: torch.Tensor, wanted: Sequence[tuple[SamplingParams, int]]) -> list[int]:
    """A token for each row of logits.

    Args:
        logits: [rows, V].
        wanted: Each row's parameters and output index.
    """
    random_rows = [row for row, (params, _) in enumerate(wanted) if params.temperature > 0]
    if not random_rows:
        return logits.argmax(dim=-1).tolist()
    tokens = torch.empty(len(wanted), dtype=torch.int64, device=logits.device)
    if len(random_rows) < len(wanted):
        torch.argmax(logits, dim=-1, out=tokens)
    rows = torch.tensor(random_rows, device=logits.device)
    chosen = _sample_random(logits.index_select(0, rows).float(), [wanted[row] for row in random_rows])
    return tokens.index_copy_(0, rows, chosen).tolist()


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits, a function of its arguments alone.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014),
    applied to both arguments in turn.
    """
    return (_mix(_mix(seed & _MASK) ^ (index & _MASK)) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _sample_random(logits: torch.Tensor, wanted: Sequence[tuple[SamplingParams, int]]) -> torch.Tensor:
    """[rows, V] float32 logits to [rows] tokens."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    temperature = column([params.temperature for params, _ in wanted])
    probabilities = torch.softmax(logits / temperature, dim=-1)
    order = None
    if any(params.top_p < 1 or params.top_k > 0 for params, _ in wanted):
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[-1], device=logits.device)
        vocab_size = logits.shape[-1]
        probabilities[ranks >= column([params.top_k or vocab_size for params, _ in wanted])] = 0
        before = probabilities.cumsum(dim=-1) - probabilities
        # the first token stays, however small top_p
        total = probabilities.sum(dim=-1, keepdim=True)
        cut = (before >= column([params.top_p for params, _ in wanted]) * total) & (ranks > 0)
        probabilities[cut] = 0
    cumulated = probabilities.double().cumsum(dim=-1)
    noise = torch.tensor(
        [uniform(params.seed, index) for params, index in wanted],
        dtype=torch.float64, device=logits.device,
    )[:, None]
    chosen = torch.searchsorted(cumulated, noise * cumulated[:, -1:], right=True)
    chosen = chosen.clamp_(max=logits.shape[-1] - 1)
    return (chosen if order is None else order.gather(-1, chosen)).squeeze(-1)
