"""Paged attention by a kernel of ours, straight from the blocks of the cache."""

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from engine.config import Settings
from engine.model.attention import lazy_zeros
from engine.model.batch import Layout
from engine.model.facts import HEAD_STEP
from engine.model.kernels.binding import AttentionStruct, Library, StepStruct, Team
from engine.model.operators import Norm
from engine.model.rotary import rotary_tables

MAX_TILE_TOKENS = 32
"""What a tile computes stays in a core's cache, and there are tiles for all cores."""
_PANEL = 16


class NativeStep:
    """`struct attention_step` of a layout, with the arrays that it points to.

    Attributes:
        lengths: [tiles] tokens.
        contexts: [tiles] tokens that the last of them sees, without a window.
    """

    def __init__(self, layout: Layout) -> None:
        # the costliest first, so that all threads end together; attention.h counts on it
        tiles = sorted(layout.tiles, key=lambda tile: -tile.length * tile.context)
        self.lengths = np.array([tile.length for tile in tiles], dtype=np.int64)
        starts = np.array([tile.start for tile in tiles], dtype=np.int64)
        self.contexts = starts + self.lengths
        self._arrays = [
            np.ascontiguousarray(layout.positions),
            np.ascontiguousarray(layout.slots),
            np.array([tile.begin for tile in tiles], dtype=np.int64),
            self.lengths,
            starts,
        ]
        lengths = [0, *map(len, layout.block_ids)]
        begins = np.cumsum(lengths)[:-1]
        self._arrays.append(begins[[tile.chunk for tile in tiles]])
        blocks = itertools.chain.from_iterable(layout.block_ids)
        self._arrays.append(np.fromiter(blocks, dtype=np.int32, count=sum(lengths)))
        addresses = [array.ctypes.data for array in self._arrays]
        self._struct = StepStruct(len(layout.positions), len(tiles), *addresses)
        self.address = ctypes.addressof(self._struct)
        self.num_tokens = len(layout.positions)


class NativeAttention:
    """Causal attention with grouped query heads, in the cache layout that attention.h describes."""

    def __init__(
        self,
        library: Library,
        team: Team,
        settings: Settings,
        dtype: torch.dtype,
    ) -> None:
        facts, cache = settings.facts, settings.cache
        self._library, self._team = library, team
        self._dtype = dtype
        padded = facts.head_dim + -facts.head_dim % HEAD_STEP
        num_panels = -(-cache.num_blocks * cache.block_size // _PANEL)
        self._cache_shape = (num_panels, facts.num_key_value_heads, 2, padded * _PANEL)
        self._tables = rotary_tables(facts, settings.max_model_len)
        cos, sin = self._tables
        self._struct = AttentionStruct(
            num_kv_heads=facts.num_key_value_heads,
            group_size=facts.num_attention_heads // facts.num_key_value_heads,
            head_dim=facts.head_dim,
            padded=padded,
            block_size=cache.block_size,
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            scale=facts.head_dim**-0.5,
        )
        self._struct.scratch_bytes = library.attention_thread_bytes(self._struct, MAX_TILE_TOKENS)
        self._scratch_bytes = library.attention_scratch_bytes(
            self._struct, team.num_threads, settings.max_model_len
        )

    def layer(
        self, window: int | None = None, norms: tuple[Norm, Norm] | None = None
    ) -> "NativeAttentionLayer":
        struct = AttentionStruct.from_buffer_copy(self._struct)
        struct.window = window or 0
        tensors = [*self._tables]  # kept, since the kernel has their addresses
        if norms is not None:
            query, key = (norm.weight.float().contiguous() for norm in norms)
            tensors += [query, key]
            struct.query_norm, struct.key_norm = query.data_ptr(), key.data_ptr()
            struct.eps = norms[0].eps
        return NativeAttentionLayer(
            self._library, self._team, struct, self._scratch_bytes, self._dtype, tensors
        )

    def new_cache(self) -> torch.Tensor:
        return lazy_zeros(self._cache_shape, self._dtype, torch.device("cpu"))

    def tile_tokens(self, _start: int) -> int:
        return MAX_TILE_TOKENS

    def begin_step(self, layout: Layout) -> NativeStep:
        return NativeStep(layout)


class NativeAttentionLayer:
    """The attention of one layer.

    Args:
        tensors: What the struct has addresses of.

    Attributes:
        function: The kernel, which takes the layer by its `address`.
        scratch_bytes: Memory that it writes in passing.
        group_size: Query heads that share a key-value head.
        row_operations: For a token that is seen, by one query head of each group.
    """

    def __init__(
        self,
        library: Library,
        team: Team,
        struct: AttentionStruct,
        scratch_bytes: int,
        dtype: torch.dtype,
        tensors: Sequence[torch.Tensor],
    ) -> None:
        self.function, self._team = library.attention, team
        self._struct, self._tensors, self._dtype = struct, tensors, dtype
        self.group_size = struct.group_size
        self.row_operations = 4 * struct.num_kv_heads * struct.head_dim
        self._out_features = struct.num_kv_heads * struct.group_size * struct.head_dim
        self.scratch_bytes = scratch_bytes
        self.address = ctypes.addressof(struct)

    def __call__(self, qkv: torch.Tensor, cache: torch.Tensor, step: NativeStep) -> torch.Tensor:
        assert qkv.is_contiguous()  # the kernel reads plain memory
        assert qkv.dtype == self._dtype
        attended = torch.empty((step.num_tokens, self._out_features), dtype=self._dtype)
        self.function(
            self.address,
            step.address,
            qkv.data_ptr(),
            cache.data_ptr(),
            attended.data_ptr(),
            self._team.scratch(self.scratch_bytes),
            self._team.pool,
        )
        return attended
