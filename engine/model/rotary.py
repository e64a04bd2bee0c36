"""Rotary position embedding: the angles that every implementation of attention shares.

Source: RoFormer (arXiv 2104.09864), in the half-split order of Llama checkpoints; its scaled kinds:
transformers, modeling_rope_utils.py.
"""

import math

import torch

from engine.model.facts import ModelFacts, RopeKind, RopeScaling


def rotary_tables(facts: ModelFacts, max_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for every position and frequency, [max_len, D/2] in float32.

    Where a scaling has an attention factor, both are multiplied by it.
    """
    half, scaling = facts.head_dim // 2, facts.rope_scaling
    frequencies = 1.0 / facts.rope_theta ** (torch.arange(half, dtype=torch.float32) / half)
    factor = 1.0
    if scaling is not None:
        factor = scaling.attention_factor
        divided = _divided_share(scaling, frequencies, facts.rope_theta)
        frequencies = divided * (frequencies / scaling.factor) + (1 - divided) * frequencies
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    return angles.cos() * factor, angles.sin() * factor


def _divided_share(scaling: RopeScaling, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
    """[D/2] 0 where a frequency stays as it is, 1 where it is divided, a mixture between."""
    length = scaling.original_max_position_embeddings
    if scaling.kind is RopeKind.linear:
        return torch.ones_like(frequencies)
    if scaling.kind is RopeKind.llama3:
        turns = length * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        return ((high - turns) / (high - low)).clamp(0, 1)
    half = len(frequencies)

    def index_of(turns: float) -> float:
        """Of the frequency, a fraction mostly, that turns so often in the original length."""
        return half * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    # up to D - 1, not D/2 - 1, as transformers does it; 0.001 keeps them apart
    first, last = max(first, 0), min(last, 2 * half - 1)
    width = last - first if last != first else 0.001
    return ((torch.arange(half, dtype=torch.float32) - first) / width).clamp(0, 1)
