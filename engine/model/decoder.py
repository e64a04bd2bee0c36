"""The decoder of every supported family: they differ in what their facts say.

Shapes: T tokens of a step, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from engine.model.facts import ModelFacts
from engine.model.operators import Attention, Norm, Operators

Weights = Callable[[str], torch.Tensor]
"""Takes a checkpoint's tensor by name, in the wanted type and on the wanted device."""


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
        self._embedding = weights("model.embed_tokens.weight")
        self._layers = [
            _Layer(facts, weights, operators, attention, index)
            for index in range(facts.num_hidden_layers)
        ]
        tied = facts.tie_word_embeddings
        self._head = operators.linear(
            self._embedding if tied else weights("lm_head.weight"),
            norm=Norm(weights("model.norm.weight"), facts.rms_norm_eps),
            float32_out=True,  # rounded to bfloat16 many logits would be equal
        )

    def hidden_states(self, token_ids: torch.Tensor, step: Any, caches: list[Any]) -> torch.Tensor:
        """[T] token ids to [T, E], before the last norm.

        Args:
            step: What the attention made of the step's layout.
            caches: One per layer, of the attention's.
        """
        x = F.embedding(token_ids, self._embedding)
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

        def joined(
            module: str, names: tuple[str, ...], bias: bool
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            paths = [f"{prefix}{module}.{name}_proj." for name in names]
            weight = torch.cat([weights(path + "weight") for path in paths])
            return weight, torch.cat([weights(path + "bias") for path in paths]) if bias else None

        def norm(name: str) -> Norm:
            return Norm(weights(f"{prefix}{name}.weight"), facts.rms_norm_eps)

        self._qkv = operators.linear(
            *joined("self_attn", ("q", "k", "v"), facts.attention_bias),
            norm=norm("input_layernorm"),
        )
        self._attention = attention.layer(
            facts.window(index),
            (norm("self_attn.q_norm"), norm("self_attn.k_norm")) if facts.qk_norm else None,
        )
        self._out = operators.linear(*joined("self_attn", ("o",), facts.attention_output_bias))
        self._gate_up = operators.linear(
            *joined("mlp", ("gate", "up"), facts.mlp_bias),
            norm=norm("post_attention_layernorm"),
            gated=True,
        )
        self._down = operators.linear(*joined("mlp", ("down",), facts.mlp_bias))

    def __call__(self, x: torch.Tensor, cache: Any, step: Any) -> torch.Tensor:
        """[T, E] to [T, E]."""
        x = self._out(self._attention(self._qkv(x), cache, step), x)
        return self._down(self._gate_up(x), x)
