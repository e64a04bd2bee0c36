"""The operators of a model by C kernels of ours, for the CPU."""

from collections.abc import Callable, Sequence

import torch

from engine.config import Settings
from engine.model.kernels.attention import NativeAttention
from engine.model.kernels.binding import Library, Team, best_library
from engine.model.kernels.layers import NativeLayers
from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.sampler import NativeSampler
from engine.model.operators import DecoderLayer, Linear, Norm


class NativeOperators:
    """Makes the layers of one model.

    One call of any of its layers at a time: they share their threads and scratch memory.

    Args:
        library: Other kernels than the best ones for this processor.

    Raises:
        KernelError: The kernels cannot be built or loaded.
    """

    remark = ""
    has_own_threads = True

    def __init__(
        self,
        settings: Settings,
        dtype: torch.dtype,
        num_threads: int,
        library: Library | None = None,
    ) -> None:
        self._settings, self._dtype = settings, dtype
        self._library = library or best_library(dtype)
        self._team = Team(self._library, num_threads)
        self.name = f"native ({self._library.path_name})"

    def linear(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> Linear:
        return NativeLinear(self._library, self._team, weight, bias, norm, gated, float32_out)

    def layers(self, layers: Sequence[DecoderLayer], on_layer: Callable[[], None]) -> NativeLayers:
        return NativeLayers(self._library, self._team, layers, self._dtype, on_layer)

    def sampler(self) -> NativeSampler:
        return NativeSampler(self._library, self._team)

    def attention(self) -> NativeAttention:
        return NativeAttention(self._library, self._team, self._settings, self._dtype)
