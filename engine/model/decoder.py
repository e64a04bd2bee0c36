"""The decoder of every supported family: they differ in what their facts say.

Shapes: T tokens of a step, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch

from engine.model import parameters
from engine.model.batch import Ints
from engine.model.facts import ModelFacts
from engine.model.operators import Attention, DecoderLayer, Linear, Norm, Operators
from engine.model.parameters import Matrix, Weights


class Decoder:
    """A decoder-only transformer: tokens to hidden states, hidden states to logits.

    Args:
        on_layer: Called after each layer, or some of them: a sign of life within long steps.
    """

    def __init__(
        self,
        facts: ModelFacts,
        weights: Weights,
        operators: Operators,
        attention: Attention,
        on_layer: Callable[[], None],
    ) -> None:
        self._embedding = operators.embedding(weights)
        layers = [
            _layer(facts, weights, operators, attention, index)
            for index in range(facts.num_hidden_layers)
        ]
        self._layers = operators.layers(layers, on_layer)
        self._head = operators.linear(
            weights.matrix(parameters.head(facts)),
            norm=Norm(weights.tensor(parameters.NORM), facts.rms_norm_eps),
            float32_out=True,  # rounded to bfloat16 many logits would be equal
        )

    def hidden_states(
        self, token_ids: torch.Tensor, step: Any, caches: list[Any], rows: Ints
    ) -> torch.Tensor:
        """[T] token ids to the hidden states [rows, E] of some, before the last norm.

        Args:
            step: What the attention made of the step's layout.
            caches: One per layer, of the attention's.
        """
        return self._layers(self._embedding(token_ids), caches, step, rows)

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[rows, E] to [rows, V] in float32."""
        return self._head(hidden_states)


def _layer(
    facts: ModelFacts, weights: Weights, operators: Operators, attention: Attention, index: int
) -> DecoderLayer:
    prefix = f"model.layers.{index}."

    def norm(name: str) -> Norm:
        return Norm(weights.tensor(f"{prefix}{name}.weight"), facts.rms_norm_eps)

    def linear(matrix: Matrix, has_bias: bool, norm: Norm | None = None) -> Linear:
        bias = parameters.bias(weights, matrix) if has_bias else None
        return operators.linear(weights.matrix(matrix), bias, norm, matrix.gated)

    norms = (norm("self_attn.q_norm"), norm("self_attn.k_norm")) if facts.qk_norm else None
    return DecoderLayer(
        qkv=linear(parameters.qkv(index), facts.attention_bias, norm("input_layernorm")),
        attention=attention.layer(facts.window(index), norms),
        out=linear(parameters.out(index), facts.attention_output_bias),
        gate_up=linear(parameters.gate_up(index), facts.mlp_bias, norm("post_attention_layernorm")),
        down=linear(parameters.down(index), facts.mlp_bias),
    )
