"""Matrix products with weights that never change: one interface, one class per way of computing."""

from typing import Protocol

import torch
import torch.nn.functional as F

_PACKING_ROWS = 64
"""Rows that oneDNN is told to expect; the number was seen to make no difference to 1 to 64 rows."""


class Linear(Protocol):
    """`y = x @ weight.T + bias`, plus a residual if given."""

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Maps [rows, in_features] to [rows, out_features]."""
        ...


class TorchLinear:
    """The operator that every device has."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y if residual is None else y.add_(residual)


class PackedLinear:
    """Weights laid out once for oneDNN: on a CPU half of the time of `TorchLinear` at few rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKING_ROWS)
        self._bias = bias
        # Bound once: looking them up takes as long as a small operator, 120 times a step.
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._product_plus = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if residual is None:
            return self._product(x, self._weight, self._bias, "none", [], "")
        return self._product_plus(x, residual, self._weight, self._bias, "add")


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest layer for the device and type of a weight [out_features, in_features]."""
    if weight.device.type == "cpu" and _can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return TorchLinear(weight, bias)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops, "mkldnn"):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
