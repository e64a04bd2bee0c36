"""The linear layer by a kernel of ours: norm, product, gate and residual in one call."""

import ctypes

import torch

from engine.model.kernels.binding import Library, LinearStruct, Team
from engine.model.kernels.packing import GROUP_COLUMNS, PackedMatrix, packed_bias
from engine.model.operators import Norm

_CELL_BYTES = 4
"""Of an element of x as it is multiplied, at most."""
_SEGMENT = 1024
"""Elements of x that share a scale, SEGMENT of levels.h."""


class NativeLinear:
    """A layer whose weight is packed; its type is the library's.

    Attributes:
        function: The kernel, which takes the layer by its `address`.
        num_weights: Elements of the weight.
    """

    def __init__(
        self,
        library: Library,
        team: Team,
        weight: PackedMatrix,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> None:
        is_int8 = weight.scales is not None
        self.function, self._team = library.linear_int8 if is_int8 else library.linear, team
        self.in_features = in_features = weight.in_features
        self.num_weights = weight.columns * in_features
        self.out_features = weight.columns // 2 if gated else weight.columns
        self._dtype = library.dtype
        self._out_dtype = torch.float32 if float32_out else library.dtype
        padded = -(-in_features // weight.weight.shape[-1]) * weight.weight.shape[-1]
        self._row_bytes = (padded + -(-in_features // _SEGMENT)) * _CELL_BYTES
        self._team_bytes = padded * GROUP_COLUMNS * 2 * team.num_threads if is_int8 else 0
        if bias is not None:
            bias = packed_bias(bias) if gated else bias.contiguous()
        norm_weight = None if norm is None else norm.weight.contiguous()
        self._tensors = (weight, bias, norm_weight)  # kept, since the kernel has their addresses
        self._struct = LinearStruct(
            weight=weight.weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            norm=None if norm_weight is None else norm_weight.data_ptr(),
            in_features=in_features,
            out_features=self.out_features,
            eps=0.0 if norm is None else norm.eps,
            gated=gated,
            float_out=float32_out,
            scales=None if weight.scales is None else weight.scales.data_ptr(),
        )
        self.address = ctypes.addressof(self._struct)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        rows, in_features = x.shape
        assert x.is_contiguous()  # the kernel reads plain memory
        assert x.dtype == self._dtype
        assert in_features == self.in_features
        y = torch.empty((rows, self.out_features), dtype=self._out_dtype)
        self.function(
            self.address,
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            self._team.scratch(self.scratch_bytes(rows)),
            rows,
            self._team.pool,
        )
        return y

    def scratch_bytes(self, num_rows: int) -> int:
        """Memory that the kernel writes in passing."""
        return self._team_bytes + num_rows * self._row_bytes
