"""Chooses next tokens: the best one, or by the inverse of the cumulated probabilities.

One uniform number decides a row, and it is a function of (seed, output index) alone, so that a
request gives the same text whatever else is in its batch, and goes on with the same text on another
rank.
"""

from collections.abc import Callable, Sequence

import torch

from engine.sampling import SamplingParams

_MASK = (1 << 64) - 1


def sample(
    logits: torch.Tensor,
    wanted: Sequence[tuple[SamplingParams, int]],
    best: Callable[[torch.Tensor], torch.Tensor],
) -> list[int]:
    """A token for each row of logits.

    Args:
        logits: [rows, V].
        wanted: Each row's parameters and output index.
        best: Gives the index of the largest of each row, [rows].
    """
    random_rows = [row for row, (params, _) in enumerate(wanted) if params.temperature > 0]
    if not random_rows:
        return best(logits).tolist()
    if len(random_rows) < len(wanted):
        tokens = best(logits)
    else:
        tokens = torch.empty(len(wanted), dtype=torch.int64, device=logits.device)
    rows = torch.tensor(random_rows, device=logits.device)
    chosen = _sample_random(
        logits.index_select(0, rows).float(), [wanted[row] for row in random_rows]
    )
    return tokens.index_copy_(0, rows, chosen).tolist()


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


def _sample_random(
    logits: torch.Tensor, wanted: Sequence[tuple[SamplingParams, int]]
) -> torch.Tensor:
    """[rows, V] float32 logits to [rows] tokens."""
    temperature = _column([params.temperature for params, _ in wanted], logits)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    filtered = [
        row for row, (params, _) in enumerate(wanted) if params.top_p < 1 or params.top_k > 0
    ]
    if filtered:
        rows = torch.tensor(filtered, device=logits.device)
        kept = _filter(probabilities.index_select(0, rows), [wanted[row][0] for row in filtered])
        probabilities.index_copy_(0, rows, kept)
    # In double precision and in the vocabulary's order for every row: a row's token may not depend
    # on the others.
    cumulated = probabilities.double().cumsum(dim=-1)
    noise = torch.tensor(
        [[uniform(params.seed, index)] for params, index in wanted],
        dtype=torch.float64,
        device=logits.device,
    )
    chosen = torch.searchsorted(cumulated, noise * cumulated[:, -1:], right=True)
    return chosen.clamp_(max=logits.shape[-1] - 1).squeeze(-1)


def _filter(probabilities: torch.Tensor, wanted: Sequence[SamplingParams]) -> torch.Tensor:
    """Zeroes what top_k and top_p leave out; the best token always stays. [rows, V]."""
    vocab_size = probabilities.shape[-1]
    in_order, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab_size, device=probabilities.device)
    in_order[ranks >= _column([params.top_k or vocab_size for params in wanted], in_order)] = 0
    before = in_order.cumsum(dim=-1) - in_order
    reach = _column([params.top_p for params in wanted], in_order) * in_order.sum(-1, keepdim=True)
    in_order[(before >= reach) & (ranks > 0)] = 0
    return torch.zeros_like(probabilities).scatter_(-1, order, in_order)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """[rows, 1], of the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
