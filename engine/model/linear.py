"""Matrix products with weights that never change, by torch: one class per way of computing."""

import torch
import torch.nn.functional as F

from engine.model.operators import Norm

_PACKING_ROWS = 64
"""Rows that oneDNN is told to expect; the number was seen to make no difference to 1 to 64 rows."""


class TorchLinear:
    """The operator that every device has."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> None:
        self._weight, self._bias = weight, bias
        self._norm, self._gated = norm, gated
        self._out_dtype = torch.float32 if float32_out else weight.dtype

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self._norm is not None:
            x = F.rms_norm(x, (x.shape[-1],), self._norm.weight, self._norm.eps)
        if not self._gated:
            return self._product(x, residual).to(self._out_dtype)
        gate, up = self._product(x, None).chunk(2, dim=-1)
        y = F.silu(gate).mul_(up)
        return (y if residual is None else y.add_(residual)).to(self._out_dtype)

    def _product(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y if residual is None else y.add_(residual)


class PackedLinear(TorchLinear):
    """Weights laid out once for oneDNN: on a CPU half of the time of `TorchLinear` at few rows."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> None:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKING_ROWS)
        super().__init__(packed, bias, norm, gated, float32_out)
        # Bound once: looking them up takes as long as a small operator, 120 times a step.
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._multiply_add = torch.ops.mkldnn._linear_pointwise.binary

    def _product(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if residual is None:
            return self._multiply(x, self._weight, self._bias, "none", [], "")
        return self._multiply_add(x, residual, self._weight, self._bias, "add")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a `PackedLinear` for weights of this type on this device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops, "mkldnn") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
