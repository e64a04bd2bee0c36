"""The decoder of every supported family: they differ in what their facts say.

Shapes: T tokens of a step, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch

from engine.model import parameters
from engine.model.facts import ModelFacts
from engine.model.operators import Attention, Linear, Norm, Operators
from engine.model.parameters import Matrix, Weights


class Decoder:
    """A decoder-only transformer: tokens to hidden states, hidden states to logits.

    Args:
        on_layer: Called after each layer: a sign of life within long steps.
    """

    def __init__(
        self,
        facts: ModelFacts,
        weights: Weights,
        operators: Operators,
        attention: Attention,
        on_layer: Callable[[], None],
    ) -> None:
        self._on_layer = on_layer
        self._embedding = operators.embedding(weights)
        self._layers = [
            _Layer(facts, weights, operators, attention, index)
            for index in range(facts.num_hidden_layers)
        ]
        self._head = operators.linear(
            weights.matrix(parameters.head(facts)),
            norm=Norm(weights.tensor(parameters.NORM), facts.rms_norm_eps),
            float32_out=True,  # rounded to bfloat16 many logits would be equal
        )

    def hidden_states(self, token_ids: torch.Tensor, step: Any, caches: list[Any]) -> torch.Tensor:
        """[T] token ids to [T, E], before the last norm.

        Args:
            step: What the attention made of the step's layout.
            caches: One per layer, of the attention's.
        """
        x = self._embedding(token_ids)
        for layer, cache in zip(self._layers, caches, strict=True):
            x = layer(x, cache, step)
            self._on_layer()
        return x

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[rows, E] to [rows, V] in float32."""
        return self._head(hidden_states)


class _Layer:
    def __init__(
        self,
        facts: ModelFacts,
        weights: Weights,
        operators: Operators,
        attention: Attention,
        index: int,
    ) -> None:
        prefix = f"model.layers.{index}."

        def norm(name: str) -> Norm:
            return Norm(weights.tensor(f"{prefix}{name}.weight"), facts.rms_norm_eps)

        def linear(matrix: Matrix, has_bias: bool, norm: Norm | None = None) -> Linear:
            bias = parameters.bias(weights, matrix) if has_bias else None
            return operators.linear(weights.matrix(matrix), bias, norm, matrix.gated)

        norms = (norm("self_attn.q_norm"), norm("self_attn.k_norm")) if facts.qk_norm else None
        self._attention = attention.layer(facts.window(index), norms)
        self._qkv = linear(parameters.qkv(index), facts.attention_bias, norm("input_layernorm"))
        self._out = linear(parameters.out(index), facts.attention_output_bias)
        self._gate_up = linear(
            parameters.gate_up(index), facts.mlp_bias, norm("post_attention_layernorm")
        )
        self._down = linear(parameters.down(index), facts.mlp_bias)

    def __call__(self, x: torch.Tensor, cache: Any, step: Any) -> torch.Tensor:
        """[T, E] to [T, E]."""
        x = self._out(self._attention(self._qkv(x), cache, step), x)
        return self._down(self._gate_up(x), x)
