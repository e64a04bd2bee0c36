"""The operators of a model by torch alone, for every device."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from engine.config import Settings
from engine.model.attention import TorchAttention
from engine.model.batch import Ints
from engine.model.linear import PackedLinear, TorchLinear, can_pack
from engine.model.loader import Checkpoint
from engine.model.operators import DecoderLayer, Embedding, Linear, Norm
from engine.model.parameters import EMBEDDING, Weights
from engine.model.torch_sampler import TorchSampler


class TorchOperators:
    """Makes the layers of one model."""

    name = "torch"
    has_own_threads = False

    def __init__(
        self, settings: Settings, dtype: torch.dtype, device: torch.device, remark: str = ""
    ) -> None:
        self.remark = remark
        self._settings, self._dtype, self._device = settings, dtype, device
        self._linear = PackedLinear if can_pack(device, dtype) else TorchLinear

    def weights(self, directory: Path) -> Checkpoint:
        return Checkpoint(directory, self._dtype, self._device)

    def embedding(self, weights: Weights) -> Embedding:
        return partial(F.embedding, weight=weights.tensor(EMBEDDING))

    def linear(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> Linear:
        return self._linear(weight, bias, norm, gated, float32_out)

    def layers(self, layers: Sequence[DecoderLayer], on_layer: Callable[[], None]) -> "TorchLayers":
        return TorchLayers(layers, on_layer)

    def attention(self) -> TorchAttention:
        return TorchAttention(self._settings, self._dtype, self._device)

    def sampler(self) -> TorchSampler:
        return TorchSampler()


class TorchLayers:
    """The layers of a model, operator by operator."""

    def __init__(self, layers: Sequence[DecoderLayer], on_layer: Callable[[], None]) -> None:
        self._layers, self._on_layer = layers, on_layer

    def __call__(
        self, x: torch.Tensor, caches: Sequence[Any], step: Any, rows: Ints
    ) -> torch.Tensor:
        last = self._layers[-1]
        for layer, cache in zip(self._layers, caches, strict=True):
            attended = layer.attention(layer.qkv(x), cache, step)
            if layer is last:  # the rest is for the wanted rows alone
                index = torch.from_numpy(rows).to(x.device)
                x, attended = x.index_select(0, index), attended.index_select(0, index)
            x = layer.out(attended, x)
            x = layer.down(layer.gate_up(x), x)
            self._on_layer()
        return x
