"""Log-probabilities of tokens and of the best ones in their place."""

from collections.abc import Sequence

import torch

from engine.sampling import TokenLogprobs


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """For each row of the model's own logits.

    Args:
        logits: [rows, V] float32.
        token_ids: [rows].
        num_top: How many of the best ones each row wants.
    """
    totals = logits.logsumexp(dim=-1)
    own = logits.gather(-1, token_ids[:, None])[:, 0] - totals
    width = min(max(num_top), logits.shape[-1])
    if not width:
        return [TokenLogprobs(logprob) for logprob in own.tolist()]
    top = logits.topk(width, dim=-1)
    top_logprobs = (top.values - totals[:, None]).tolist()
    return [
        TokenLogprobs(logprob, ids[:num], logprobs[:num])
        for logprob, ids, logprobs, num in zip(
            own.tolist(), top.indices.tolist(), top_logprobs, num_top, strict=True
        )
    ]
