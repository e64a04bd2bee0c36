"""Paged attention by plain torch operators.

One gather, two batched products and a softmax per group of tiles (see batch.py).

Shapes: T tokens of a tile, N tiles of a group, L context length padded to whole blocks, B blocks, H
key-value heads, G query heads per key-value head, D head size, S slots (blocks * block size).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.model.batch import Layout, TileGroup


class PagedCache:
    """Keys and values of one layer, by block: one contiguous row per head and block."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, num_kv_heads, num_blocks, block_size, head_dim)
        self._kv = _lazy_zeros(shape, dtype, device)
        self._rows = self._kv.view(2 * num_kv_heads * num_blocks * block_size, head_dim)
        self._blocks = self._kv.view(2 * num_kv_heads * num_blocks, block_size * head_dim)

    def write(self, keys_values: torch.Tensor, step: "AttentionStep") -> None:
        """Stores new keys and values, [tokens, 2*H, D], keys first."""
        rows = keys_values.reshape(-1, keys_values.shape[-1])
        self._rows.index_copy_(0, step.cache_rows, rows)

    def gather(self, group: "_GroupStep") -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a group's contexts, [H*N, L, D] each."""
        blocks = F.embedding(group.block_rows, self._blocks)
        keys, values = blocks.view(2, group.num_batches, group.context, -1)
        return keys, values


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that, on a CPU, take memory only where something is written.

    Zeros, since padding is read (and masked): a NaN in it would spread.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes its zeros; numpy has them from the operating system, page by page
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(slots=True)
class _GroupStep:
    begin: int
    end: int
    num_tiles: int
    tile_tokens: int
    num_batches: int
    """H * N."""
    context: int
    """L."""
    block_rows: torch.Tensor
    """[2*H*N, B] rows of the cache to gather."""
    mask: torch.Tensor
    """[N, T, L] 0 where a token may look, -inf elsewhere."""


@dataclass(slots=True)
class AttentionStep:
    """What all layers share in one step."""

    cache_rows: torch.Tensor
    """[tokens*2*H] rows of the cache that new keys and values go to."""
    groups: list[_GroupStep]


class PagedAttention:
    """Causal attention with grouped query heads over a paged cache."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.num_groups = num_heads // num_kv_heads
        self.num_blocks, self.block_size = num_blocks, block_size
        self.dtype, self.device = dtype, device

    def begin_step(self, layout: Layout) -> AttentionStep:
        """Indices and masks of a step, made once for all layers."""
        num_slots = self.num_blocks * self.block_size
        heads = torch.arange(2 * self.num_kv_heads)
        cache_rows = torch.from_numpy(layout.slots)[:, None] + heads * num_slots
        return AttentionStep(
            cache_rows=cache_rows.flatten().to(self.device),
            groups=[self._begin_group(group) for group in layout.groups],
        )

    def _begin_group(self, group: TileGroup) -> _GroupStep:
        num_tiles, num_blocks = group.block_tables.shape
        context = num_blocks * self.block_size
        heads = torch.arange(2 * self.num_kv_heads) * self.num_blocks
        block_rows = heads[:, None, None] + torch.from_numpy(group.block_tables)
        positions = torch.from_numpy(group.starts)[:, None] + torch.arange(group.tile_tokens)
        reach = positions.to(self.device)[..., None]
        hidden = torch.arange(context, device=self.device) > reach
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return _GroupStep(
            begin=group.begin,
            end=group.begin + num_tiles * group.tile_tokens,
            num_tiles=num_tiles,
            tile_tokens=group.tile_tokens,
            num_batches=self.num_kv_heads * num_tiles,
            context=context,
            block_rows=block_rows.view(-1, num_blocks).to(self.device),
            mask=mask.masked_fill_(hidden, float("-inf")),
        )

    def __call__(
        self,
        queries: torch.Tensor,
        keys_values: torch.Tensor,
        cache: PagedCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """Stores keys and values [tokens, 2*H, D], attends with queries [tokens, H*G, D].

        Returns:
            [tokens, H*G*D].
        """
        cache.write(keys_values, step)
        parts = [self._attend(queries[g.begin : g.end], cache, g) for g in step.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(self, queries: torch.Tensor, cache: PagedCache, group: _GroupStep) -> torch.Tensor:
        n, t, h, g, d = (
            group.num_tiles,
            group.tile_tokens,
            self.num_kv_heads,
            self.num_groups,
            self.head_dim,
        )
        keys, values = cache.gather(group)
        rows = queries.reshape(n, t, h, g, d).permute(2, 0, 3, 1, 4).reshape(h * n, g * t, d)
        scores = torch.bmm(rows * d**-0.5, keys.transpose(1, 2))
        scores.view(h, n, g, t, group.context).add_(group.mask[:, None])
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
        return mixed.view(h, n, g, t, d).permute(1, 3, 0, 2, 4).reshape(n * t, h * g * d)
