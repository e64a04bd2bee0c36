"""The linear layer by a kernel of ours: norm, product, gate and residual in one call."""

import ctypes

import torch
import torch.nn.functional as F

from engine.model.kernels.binding import Library, LinearStruct, Team
from engine.model.operators import Norm

_PANEL = 16
_GROUP_PANELS = 4


class NativeLinear:
    """Weights packed once, in the layout that linear.h describes.

    Attributes:
        function: The kernel, which takes the layer by its `address`.
        num_weights: Elements of the weight.
    """

    def __init__(
        self,
        library: Library,
        team: Team,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> None:
        self.function, self._team = library.linear, team
        num_columns, in_features = weight.shape
        self.in_features, self.num_weights = in_features, weight.numel()
        self.out_features = num_columns // 2 if gated else num_columns
        self._dtype = weight.dtype
        self._out_dtype = torch.float32 if float32_out else weight.dtype
        self._row_bytes = -(-in_features // library.depth) * library.depth * 4
        bias = None if bias is None else bias.contiguous()
        norm_weight = None if norm is None else norm.weight.contiguous()
        if gated:
            weight = _interleave(weight)
            bias = None if bias is None else _whole_groups(_interleave(bias[:, None])).flatten()
        packed = pack(weight, library.depth)
        self._tensors = (packed, bias, norm_weight)  # kept, since the kernel has their addresses
        self._struct = LinearStruct(
            weight=packed.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            norm=None if norm_weight is None else norm_weight.data_ptr(),
            in_features=in_features,
            out_features=self.out_features,
            eps=0.0 if norm is None else norm.eps,
            gated=gated,
            float_out=float32_out,
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
        return num_rows * self._row_bytes


def pack(weight: torch.Tensor, depth: int) -> torch.Tensor:
    """[columns, K] to [groups, steps, 4, 16, depth], padded with zeros."""
    num_columns, k = weight.shape
    columns, num_steps = _PANEL * _GROUP_PANELS, -(-k // depth)
    shape = (-(-num_columns // columns), num_steps, _GROUP_PANELS, _PANEL, depth)
    packed = torch.empty(shape, dtype=weight.dtype)
    for group, rows in zip(packed, weight.split(columns), strict=True):  # no second copy of all
        if rows.shape != (columns, num_steps * depth):
            rows = F.pad(rows, (0, num_steps * depth - k, 0, columns - len(rows)))
        group.copy_(rows.view(_GROUP_PANELS, _PANEL, num_steps, depth).permute(2, 0, 1, 3))
    return packed


def _whole_groups(weight: torch.Tensor) -> torch.Tensor:
    """[columns, K] with as many columns of zeros behind as make the last group whole."""
    return F.pad(weight, (0, 0, 0, -weight.shape[0] % (_PANEL * _GROUP_PANELS)))


def _interleave(weight: torch.Tensor) -> torch.Tensor:
    """Rows of gate, then up, to 16 of gate, 16 of up and so on, padded to whole sixteens."""
    padded = [F.pad(half, (0, 0, 0, -half.shape[0] % _PANEL)) for half in weight.chunk(2)]
    panels = [half.view(-1, _PANEL, half.shape[1]) for half in padded]
    return torch.stack(panels, dim=1).reshape(-1, weight.shape[1])
