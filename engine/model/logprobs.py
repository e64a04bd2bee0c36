"""Log-probabilities of tokens and of the best ones in their place."""

from collections.abc import Sequence

import torch

from engine.model.choice import Sampler
from engine.sampling import TokenLogprobs


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: Sequence[int], sampler: Sampler
) -> list[TokenLogprobs]:
    """For each row of the model's own logits.

    Args:
        logits: [rows, V] float32.
        token_ids: [rows].
        num_top: How many of the best ones each row wants.
    """
    scores = sampler.score(logits, token_ids, min(max(num_top), logits.shape[-1]))
    return [
        TokenLogprobs(logprob, ids[:num], logprobs[:num])
        for logprob, ids, logprobs, num in zip(
            scores.own.tolist(), scores.top_ids.tolist(), scores.top.tolist(), num_top, strict=True
        )
    ]
