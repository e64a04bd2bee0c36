"""Weights in the layout that linear.h describes, whole or rounded to 8 bits."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

LAYOUT_VERSION = 1
"""Counted up when `packed_groups` gives something else: packed files of before are not read."""
PANEL = 16
GROUP_PANELS = 4
GROUP_COLUMNS = PANEL * GROUP_PANELS
INT8_DEPTH = 2
"""Levels of a column that lie side by side, DEPTH_INT8 of levels.h."""
_MAX_LEVEL = 127


class PackedMatrix(NamedTuple):
    """The weight of a linear layer, as the kernels read it."""

    weight: torch.Tensor
    """[groups, steps, 4, 16, depth], columns and in_features padded with zeros."""
    scales: torch.Tensor | None
    """[columns, padded] in float32, of a weight of 8 bits."""
    columns: int
    """Without those that fill up."""
    in_features: int


def pack(
    weight: torch.Tensor, depth: int, gated: bool = False, quantized: bool = False
) -> PackedMatrix:
    """Packs [columns, in_features]; see `packed_groups`."""
    groups = list(packed_groups(weight, depth, gated, quantized))
    scales = torch.cat([scales for _, scales in groups]) if quantized else None
    return PackedMatrix(torch.stack([group for group, _ in groups]), scales, *weight.shape)


def packed_groups(
    weight: torch.Tensor, depth: int, gated: bool, quantized: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Group by group, so that there is no second copy of all: [steps, 4, 16, depth] and scales.

    Args:
        weight: [columns, in_features].
        depth: Elements of a column that lie side by side.
        gated: The first half of the columns is a gate: its panels and the others take turns.
        quantized: Rounded to whole multiples of a scale for each column, [64] float32; else there
            are none.
    """
    if gated:
        weight = interleave(weight)
    in_features = weight.shape[1]
    num_steps = -(-in_features // depth)
    for rows in weight.split(GROUP_COLUMNS):
        missing = (0, num_steps * depth - in_features, 0, GROUP_COLUMNS - len(rows))
        group, scales = F.pad(rows, missing), rows.new_empty(0)
        if quantized:
            group, scales = _levels(group)
        panels = group.view(GROUP_PANELS, PANEL, num_steps, depth)
        yield panels.permute(2, 0, 1, 3).contiguous(), scales


def packed_shape(columns: int, in_features: int, depth: int, gated: bool) -> tuple[int, ...]:
    """Of what `packed_groups` gives, all groups together."""
    if gated:
        columns = 2 * (-(-columns // 2 // PANEL) * PANEL)
    return -(-columns // GROUP_COLUMNS), -(-in_features // depth), GROUP_PANELS, PANEL, depth


def interleave(weight: torch.Tensor) -> torch.Tensor:
    """Rows of gate, then up, to 16 of gate, 16 of up and so on, padded to whole sixteens."""
    padded = [F.pad(half, (0, 0, 0, -half.shape[0] % PANEL)) for half in weight.chunk(2)]
    panels = [half.view(-1, PANEL, half.shape[1]) for half in padded]
    return torch.stack(panels, dim=1).reshape(-1, weight.shape[1])


def packed_bias(bias: torch.Tensor) -> torch.Tensor:
    """A gated layer's bias in the order of its panels, padded with zeros to whole groups."""
    interleaved = interleave(bias[:, None]).flatten()
    return F.pad(interleaved, (0, -len(interleaved) % GROUP_COLUMNS))


def _levels(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of 255 evenly spaced levels around zero, row by row, and their distances."""
    exact = rows.float()
    scales = exact.abs().amax(dim=1) / _MAX_LEVEL
    levels = exact / torch.where(scales > 0, scales, 1.0)[:, None]
    return levels.round().clamp(-_MAX_LEVEL, _MAX_LEVEL).to(torch.int8), scales
