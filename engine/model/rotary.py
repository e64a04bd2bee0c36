"""Rotary position embedding: the angles that every implementation of attention shares.

Source: RoFormer (arXiv 2104.09864), in the half-split order of Llama checkpoints.
"""

import torch

from engine.model.facts import ModelFacts


def rotary_tables(facts: ModelFacts, max_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for every position and frequency, [max_len, D/2] in float32."""
    half = facts.head_dim // 2
    frequencies = 1.0 / facts.rope_theta ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
