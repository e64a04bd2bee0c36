"""The operators of a model by torch alone, for every device."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from engine.config import Settings
from engine.model.attention import TorchAttention
from engine.model.linear import PackedLinear, TorchLinear, can_pack
from engine.model.loader import Checkpoint
from engine.model.operators import Embedding, Linear, Norm
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

    def attention(self) -> TorchAttention:
        return TorchAttention(self._settings, self._dtype, self._device)

    def sampler(self) -> TorchSampler:
        return TorchSampler()
