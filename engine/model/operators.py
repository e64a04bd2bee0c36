"""What a model is built from: linear layers and attention, one interface each, and who makes them.

`torch` has them on every device; `native` ones are C kernels of ours for the CPU (see kernels/).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from engine.config import Kernels, Quantization, Settings, may_be_native
from engine.errors import KernelError
from engine.model.batch import Ints, Layout
from engine.model.choice import Sampler
from engine.model.parameters import Weights

logger = logging.getLogger(__name__)


class Norm(NamedTuple):
    """An RMS norm: x / sqrt(mean(x^2) + eps) * weight."""

    weight: torch.Tensor
    """[features]."""
    eps: float


Embedding = Callable[[torch.Tensor], torch.Tensor]
"""[tokens] ids to [tokens, features]."""


class Linear(Protocol):
    """`x @ weight.T + bias`, with the operators around it that a kernel can do on its way."""

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Norms x [rows, in_features], multiplies, gates, adds residual [rows, out_features]."""
        ...


class AttentionLayer(Protocol):
    """The attention of one layer."""

    def __call__(self, qkv: torch.Tensor, cache: Any, step: Any) -> torch.Tensor:
        """Norms and rotates queries and keys, stores keys and values, attends.

        Args:
            qkv: [tokens, (query heads + 2 * key-value heads) * head size], in the layout's order;
                it may be overwritten.

        Returns:
            [tokens, query heads * head size].
        """
        ...


class Attention(Protocol):
    """Causal attention with grouped query heads over a paged cache, rotary embedding included.

    A cache (of one layer) and a step are made here and given back; what they are is its own affair.
    """

    def layer(
        self, window: int | None = None, norms: tuple[Norm, Norm] | None = None
    ) -> AttentionLayer:
        """One layer.

        Args:
            window: Tokens that a token sees, itself among them; None: all before it. One of those
                in the model's facts.
            norms: Of each head of the queries and of the keys, before they are rotated.
        """
        ...

    def new_cache(self) -> Any:
        """An empty cache of one layer."""
        ...

    def tile_tokens(self, start: int) -> int:
        """Most tokens of one sequence, from position `start` on, that attend as one tile."""
        ...

    def begin_step(self, layout: Layout) -> Any:
        """What all layers share in one step."""
        ...


class DecoderLayer(NamedTuple):
    """What a layer of a decoder is made of."""

    qkv: Linear
    attention: AttentionLayer
    out: Linear
    gate_up: Linear
    down: Linear


class Layers(Protocol):
    """All layers of a decoder, one after the other."""

    def __call__(
        self, x: torch.Tensor, caches: Sequence[Any], step: Any, rows: Ints
    ) -> torch.Tensor:
        """[tokens, hidden size] to the hidden states [len(rows), hidden size] of these tokens.

        Args:
            x: It may be overwritten.
            caches: One per layer.
        """
        ...


class Operators(Protocol):
    """Makes the layers of one model."""

    name: str
    """For logs: which operators these are."""
    remark: str
    """What the user should know about them, or ""."""
    has_own_threads: bool
    """Whether they compute in other threads than torch's."""

    def weights(self, directory: Path) -> Weights:
        """Those of a model directory, for the layers that are made here.

        Raises:
            ModelError: The directory lacks some.
        """
        ...

    def embedding(self, weights: Any) -> Embedding:
        """That of what `weights()` gives."""
        ...

    def linear(
        self,
        weight: Any,
        bias: torch.Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        float32_out: bool = False,
    ) -> Linear:
        """A layer of a model.

        Args:
            weight: A matrix of `weights()`, [out_features, in_features].
            bias: [out_features].
            norm: Applied to x first.
            gated: The weight's first half is a gate, the second goes up, and the result is
                silu(gate) * up, with half as many features.
            float32_out: The result is float32, whatever the type of the rest.
        """
        ...

    def attention(self) -> Attention: ...

    def layers(self, layers: Sequence[DecoderLayer], on_layer: Callable[[], None]) -> Layers:
        """All layers of a model, made here.

        Args:
            on_layer: Called after each of them, or some of them: a sign of life.
        """
        ...

    def sampler(self) -> Sampler: ...


def make_operators(
    settings: Settings, dtype: torch.dtype, device: torch.device, num_threads: int
) -> Operators:
    """The operators that `engine.kernels` asks for.

    Raises:
        KernelError: Native kernels were asked for, or quantised weights, which only they have, and
            they cannot be had.
    """
    from engine.model.torch_operators import TorchOperators

    quantized = settings.quantization is not Quantization.none
    if not may_be_native(settings.kernels, settings.device, settings.dtype):
        assert not quantized  # the planner has refused it
        return TorchOperators(settings, dtype, device)
    try:
        from engine.model.kernels.operators import NativeOperators

        return NativeOperators(settings, dtype, num_threads)
    except KernelError as error:
        if settings.kernels is Kernels.native or quantized:
            raise
        logger.warning("native kernels cannot be used: %s; %s", error, error.hint)
        remark = f"torch's slower operators: {error}; hint: {error.hint}"
        return TorchOperators(settings, dtype, device, remark)
