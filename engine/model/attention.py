"""Paged attention by plain torch operators.

Tiles of equal length and similar context are put side by side in groups (a group is a slice of the
per-token arrays; only contexts are padded). One gather, two batched products and a softmax per
group.

Shapes: T tokens of a tile, N tiles of a group, L context length padded to whole blocks, B blocks, H
key-value heads, G query heads per key-value head, D head size, S slots (blocks * block size).

In layers with a sliding window a context begins with the block of the first token that is seen.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.config import Settings
from engine.model.batch import Layout, Tile
from engine.model.operators import Norm
from engine.model.rotary import rotary_tables

MAX_TILE_TOKENS = 128
"""Short: little is computed that the causal mask hides; long: matrix products are full."""
MAX_GROUP_SCORES = 1 << 21
"""Most attention scores per query head of one group: bounds scratch memory, keeps it cached."""
MAX_GROUP_CONTEXT = 4096
"""Most context tokens in one group of several tiles: what is gathered is used while cached."""
_CACHE_LINE = 64
"""Bytes; what straddles two lines is read in twice the time."""
_CONTEXT_STEP = 1.25
"""Contexts in one group differ by this factor at most: at most a fifth of them is padding."""
_CONTEXT_SLACK = 64
"""Tokens by which contexts in one group may differ anyway: short ones need no own group."""


class PagedCache:
    """Keys and values of one layer, by block: one contiguous row per head and block.

    One more block than is given out stays all zeros: shorter contexts are padded with it.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, num_kv_heads, num_blocks + 1, block_size, head_dim)
        keys_values = lazy_zeros(shape, dtype, device)
        self._rows = keys_values.view(-1, head_dim)
        self._blocks = keys_values.view(-1, block_size * head_dim)

    def write(self, keys_values: torch.Tensor, step: "AttentionStep") -> None:
        """Stores new keys and values, [tokens, 2*H, D], keys first."""
        if step.begun_rows is not None:
            self._blocks.index_fill_(0, step.begun_rows, 0)
        rows = keys_values.reshape(-1, keys_values.shape[-1])
        self._rows.index_copy_(0, step.cache_rows, rows)

    def gather(self, group: "_GroupStep") -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a group's contexts, [H*N, L, D] each."""
        blocks = F.embedding(group.block_rows, self._blocks)
        keys, values = blocks.view(2, group.num_batches, group.context, -1)
        return keys, values


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that, on a CPU, take memory only where something is written.

    Zeros, since what is not written yet is read (and masked): a NaN in it would spread.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes its zeros; numpy has them from the operating system, page by page
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + _CACHE_LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % _CACHE_LINE
    return torch.from_numpy(memory[begin : begin + num_bytes]).view(dtype).view(shape)


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
    begun_rows: torch.Tensor | None
    """[2*H*B] rows of blocks that are begun now and not filled. What others left there is
    erased: it is masked, but 0 times NaN is NaN."""
    rotation: tuple[torch.Tensor, torch.Tensor]
    """cos and signed sin, [tokens, 1, D] each."""
    groups: dict[int | None, list[_GroupStep]]
    """By the window of the layers that they are for."""


class TorchAttention:
    """Causal attention with grouped query heads over a paged cache."""

    def __init__(self, settings: Settings, dtype: torch.dtype, device: torch.device) -> None:
        facts, cache = settings.facts, settings.cache
        self._num_kv_heads = facts.num_key_value_heads
        self._num_heads, self._head_dim = facts.num_attention_heads, facts.head_dim
        self._num_blocks, self._block_size = cache.num_blocks, cache.block_size
        self._dtype, self._device = dtype, device
        self._windows = {facts.window(layer) for layer in range(facts.num_hidden_layers)}
        cos, sin = rotary_tables(facts, settings.max_model_len)
        self._cos = torch.cat((cos, cos), dim=-1).to(device, dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(device, dtype)

    def layer(
        self, window: int | None = None, norms: tuple[Norm, Norm] | None = None
    ) -> "TorchAttentionLayer":
        assert window in self._windows
        return TorchAttentionLayer(self._num_heads, self._num_kv_heads, window, norms)

    def new_cache(self) -> PagedCache:
        return PagedCache(
            self._num_blocks,
            self._block_size,
            self._num_kv_heads,
            self._head_dim,
            self._dtype,
            self._device,
        )

    def tile_tokens(self, start: int) -> int:
        return min(MAX_TILE_TOKENS, max(1, MAX_GROUP_SCORES // (start + MAX_TILE_TOKENS)))

    def begin_step(self, layout: Layout) -> AttentionStep:
        num_slots = (self._num_blocks + 1) * self._block_size
        heads = torch.arange(2 * self._num_kv_heads)
        cache_rows = torch.from_numpy(layout.slots)[:, None] + heads * num_slots
        positions = torch.from_numpy(layout.positions).to(self._device)
        groups = group_tiles(layout.tiles)
        return AttentionStep(
            cache_rows=cache_rows.flatten().to(self._device),
            begun_rows=self._begun_rows(layout),
            rotation=(
                F.embedding(positions, self._cos)[:, None],
                F.embedding(positions, self._sin)[:, None],
            ),
            groups={
                window: [self._begin_group(tiles, layout, window) for tiles in groups]
                for window in self._windows
            },
        )

    def _begun_rows(self, layout: Layout) -> torch.Tensor | None:
        size = self._block_size
        begun = [
            layout.block_ids[tile.chunk][tile.context // size]
            for tile in layout.tiles
            if 0 < tile.context % size <= tile.length
        ]
        if not begun:
            return None
        heads = torch.arange(2 * self._num_kv_heads) * (self._num_blocks + 1)
        return (heads[:, None] + torch.tensor(begun)).flatten().to(self._device)

    def _begin_group(self, tiles: list[Tile], layout: Layout, window: int | None) -> _GroupStep:
        tile_tokens = tiles[0].length
        reach = window or tiles[-1].context  # as far back as anything is seen
        begins = [max(0, tile.start - reach + 1) // self._block_size for tile in tiles]
        ends = [-(-tile.context // self._block_size) for tile in tiles]
        num_blocks = max(end - begin for begin, end in zip(begins, ends, strict=True))
        tables = np.full((len(tiles), num_blocks), self._num_blocks)  # padded with the zero block
        for row, (tile, begin, end) in enumerate(zip(tiles, begins, ends, strict=True)):
            tables[row, : end - begin] = layout.block_ids[tile.chunk][begin:end]
        context = num_blocks * self._block_size
        heads = torch.arange(2 * self._num_kv_heads) * (self._num_blocks + 1)
        block_rows = heads[:, None, None] + torch.from_numpy(tables)
        # of the tiles' tokens [N, T, 1], counted from the beginning of each context
        positions = torch.tensor(
            [
                tile.start - begin * self._block_size
                for tile, begin in zip(tiles, begins, strict=True)
            ]
        )
        positions = (positions[:, None] + torch.arange(tile_tokens)).to(self._device)[..., None]
        others = torch.arange(context, device=self._device)
        hidden = others > positions
        if window is not None:
            hidden |= others <= positions - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return _GroupStep(
            begin=tiles[0].begin,
            end=tiles[-1].begin + tile_tokens,
            num_tiles=len(tiles),
            tile_tokens=tile_tokens,
            num_batches=self._num_kv_heads * len(tiles),
            context=context,
            block_rows=block_rows.view(-1, num_blocks).to(self._device),
            mask=mask.masked_fill_(hidden, float("-inf")),
        )


class TorchAttentionLayer:
    """The attention of one layer."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        window: int | None,
        norms: tuple[Norm, Norm] | None,
    ) -> None:
        self._num_heads, self._num_kv_heads = num_heads, num_kv_heads
        self._window, self._norms = window, norms

    def __call__(self, qkv: torch.Tensor, cache: PagedCache, step: AttentionStep) -> torch.Tensor:
        rows = self._num_heads + 2 * self._num_kv_heads
        heads = qkv.view(qkv.shape[0], rows, -1)
        queries, keys = heads[:, : self._num_heads], heads[:, self._num_heads : -self._num_kv_heads]
        if self._norms is not None:
            for part, norm in zip((queries, keys), self._norms, strict=True):
                part.copy_(F.rms_norm(part, part.shape[-1:], norm.weight, norm.eps))
        _rotate_(heads[:, : -self._num_kv_heads], *step.rotation)
        cache.write(heads[:, self._num_heads :], step)
        groups = step.groups[self._window]
        parts = [self._attend(queries[g.begin : g.end], cache, g) for g in groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(self, queries: torch.Tensor, cache: PagedCache, group: _GroupStep) -> torch.Tensor:
        """[tokens, H*G, D] to [tokens, H*G*D]."""
        n, t, h = group.num_tiles, group.tile_tokens, self._num_kv_heads
        g, d = self._num_heads // h, queries.shape[-1]
        keys, values = cache.gather(group)
        rows = queries.reshape(n, t, h, g, d).permute(2, 0, 3, 1, 4).reshape(h * n, g * t, d)
        scores = torch.bmm(rows * d**-0.5, keys.transpose(1, 2))
        scores.view(h, n, g, t, group.context).add_(group.mask[:, None])
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
        return mixed.view(h, n, g, t, d).permute(1, 3, 0, 2, 4).reshape(n * t, h * g * d)


def group_tiles(tiles: list[Tile]) -> list[list[Tile]]:
    """Cuts tiles, in the layout's order, into groups of one length and of similar contexts."""
    groups: list[list[Tile]] = []
    for tile in tiles:
        if groups and _fits(tile, groups[-1]):
            groups[-1].append(tile)
        else:
            groups.append([tile])
    return groups


def _fits(tile: Tile, group: list[Tile]) -> bool:
    """Whether the tile, whose context is at least that of each in the group, may join it."""
    num_tiles = len(group) + 1
    return (
        tile.length == group[0].length
        and tile.context <= group[0].context * _CONTEXT_STEP + _CONTEXT_SLACK
        and num_tiles * tile.length * tile.context <= MAX_GROUP_SCORES
        and num_tiles * tile.context <= MAX_GROUP_CONTEXT
    )


def _rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary embedding of [tokens, heads, D] in place; `sin` has the sign of the swapped halves."""
    torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin, out=x)
