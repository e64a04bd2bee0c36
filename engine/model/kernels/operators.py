"""The operators of a model by C kernels of ours, for the CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from engine.config import Quantization, Settings
from engine.model import parameters
from engine.model.kernels.attention import NativeAttention
from engine.model.kernels.binding import Library, Team, best_library
from engine.model.kernels.embedding import NativeEmbedding
from engine.model.kernels.layers import NativeLayers
from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.packed_file import Form
from engine.model.kernels.packed_weights import PackedWeights
from engine.model.kernels.packing import PackedMatrix
from engine.model.kernels.sampler import NativeSampler
from engine.model.operators import DecoderLayer, Embedding, Linear, Norm


class NativeOperators:
    """Makes the layers of one model.

    One call of any of its layers at a time: they share their threads and scratch memory.

    Args:
        library: Other kernels than the best ones for this processor.

    Raises:
        KernelError: The kernels cannot be built or loaded.
    """

    has_own_threads = True

    def __init__(
        self,
        settings: Settings,
        dtype: torch.dtype,
        num_threads: int,
        library: Library | None = None,
    ) -> None:
        self.remark = ""
        self._settings, self._dtype = settings, dtype
        self._library = library or best_library(dtype)
        self._team = Team(self._library, num_threads)
        self.name = f"native ({self._library.path_name})"

    def weights(self, directory: Path) -> PackedWeights:
        quantized = self._settings.quantization is Quantization.int8
        form = Form(self._dtype, self._library.depth, quantized)
        weights = PackedWeights(directory, self._settings.facts, form)
        self.remark = weights.remark
        return weights

    def embedding(self, weights: PackedWeights) -> Embedding:
        if weights.has_embedding:
            return partial(F.embedding, weight=weights.tensor(parameters.EMBEDDING))
        head = weights.matrix(parameters.head(self._settings.facts))
        return NativeEmbedding(self._library, self._team, head)

    def linear(
        self,
        weight: PackedMatrix,
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
