"""The operators of a model by torch alone, for every device."""

import torch

from engine.config import Settings
from engine.model.attention import TorchAttention
from engine.model.linear import PackedLinear, TorchLinear, can_pack
from engine.model.operators import Linear, Norm


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

    def linear(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
    ) -> Linear:
        return self._linear(weight, bias, norm, gated)

    def attention(self) -> TorchAttention:
        return TorchAttention(self._settings, self._dtype, self._device)

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        # `max` was seen to take a quarter of `argmax`'s time in bfloat16.
        return logits.max(dim=-1).indices
