"""All layers of a decoder in a few calls of our kernels, with memory that is kept between steps."""

import ctypes
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch

from engine.model.batch import Ints
from engine.model.kernels.attention import NativeAttentionLayer, NativeStep
from engine.model.kernels.binding import (
    DecoderLayerStruct,
    DecoderStepStruct,
    Library,
    Team,
    address_of,
)
from engine.model.kernels.linear import NativeLinear
from engine.model.operators import DecoderLayer

_ALIGNMENT = 64
_CALL_OPERATIONS = 10e9
"""Of one call: some 30 ms, so that there are signs of life within a long step."""
_LEAST_ROWS = 8
"""Fewer do not take less time: it is the weights, or keys and values, that are waited for."""


class NativeLayers:
    """The layers of a model, whose linear layers and attention are native ones.

    Args:
        on_layer: Called after each call of the kernels.
    """

    def __init__(
        self,
        library: Library,
        team: Team,
        layers: Sequence[DecoderLayer],
        dtype: torch.dtype,
        on_layer: Callable[[], None],
    ) -> None:
        self._decode, self._team, self._on_layer = library.decode_layers, team, on_layer
        self._layers = layers  # kept, since the structs have their addresses
        self._dtype = dtype
        self._caches: Sequence[torch.Tensor] | None = None
        first = layers[0]
        self._linears = cast(
            "list[NativeLinear]", [first.qkv, first.out, first.gate_up, first.down]
        )
        self._attention = cast(NativeAttentionLayer, first.attention)
        self._row_operations = 2 * sum(each.num_weights for each in self._linears)
        self._structs = (DecoderLayerStruct * len(layers))(*map(_struct, layers))
        self._structs[-1].is_last = True
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __call__(
        self, x: torch.Tensor, caches: Sequence[torch.Tensor], step: NativeStep, rows: Ints
    ) -> torch.Tensor:
        """Hidden states of the rows; x is overwritten."""
        assert len(rows) <= len(x)  # the last layer gathers them where queries were
        assert x.is_contiguous()  # the kernels read plain memory
        assert x.dtype == self._dtype
        if caches is not self._caches:
            self._caches = caches
            for struct, cache in zip(self._structs, caches, strict=True):
                struct.cache = cache.data_ptr()
        hidden = torch.empty((len(rows), x.shape[1]), dtype=self._dtype)
        qkv, attended, gated = self._activations(len(x))
        decoder_step = DecoderStepStruct(
            attention=step.address,
            x=x.data_ptr(),
            qkv=qkv,
            attended=attended,
            gated=gated,
            scratch=self._scratch(len(x)),
            rows=rows.ctypes.data,
            hidden=hidden.data_ptr(),
            num_rows=len(rows),
            element_bytes=self._dtype.itemsize,
        )
        num_layers = max(1, int(_CALL_OPERATIONS / self._layer_operations(step)))
        address, size = ctypes.addressof(self._structs), ctypes.sizeof(DecoderLayerStruct)
        for begin in range(0, len(self._layers), num_layers):
            num = min(num_layers, len(self._layers) - begin)
            self._decode(address + begin * size, num, decoder_step, self._team.pool)
            self._on_layer()
        return hidden

    def _layer_operations(self, step: NativeStep) -> int:
        """Of one layer in a step, counted so that they are a measure of its time."""
        rows = np.maximum(step.lengths * self._attention.group_size, _LEAST_ROWS)
        attention = self._attention.row_operations * int(rows @ step.contexts)
        return self._row_operations * max(step.num_tokens, _LEAST_ROWS) + attention

    def _activations(self, num_rows: int) -> list[int]:
        """Where the results of the inner layers of so many rows are."""
        qkv, out, gate_up, _ = self._linears
        widths = qkv.out_features, out.in_features, gate_up.out_features
        sizes = [num_rows * width * self._dtype.itemsize for width in widths]
        sizes = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        if self._memory.numel() < sum(sizes):
            self._memory = torch.empty(sum(sizes), dtype=torch.uint8)
        begin = self._memory.data_ptr()
        return [begin, begin + sizes[0], begin + sizes[0] + sizes[1]]

    def _scratch(self, num_rows: int) -> int:
        """Memory for whichever kernel needs the most."""
        linear_bytes = max(linear.scratch_bytes(num_rows) for linear in self._linears)
        return self._team.scratch(max(linear_bytes, self._attention.scratch_bytes))


def _struct(layer: DecoderLayer) -> DecoderLayerStruct:
    names = ("qkv", "out", "gate_up", "down")
    linears = {name: cast(NativeLinear, getattr(layer, name)) for name in names}
    attention = cast(NativeAttentionLayer, layer.attention)
    return DecoderLayerStruct(
        **{name: linear.address for name, linear in linears.items()},
        **{f"multiply_{name}": address_of(linear.function) for name, linear in linears.items()},
        attention=attention.address,
        attend=address_of(attention.function),
    )
