"""The decoder of every supported family: they differ in what their facts say.

Shapes: T tokens of a step, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from engine.model.batch import Ints
from engine.model.facts import ModelFacts
from engine.model.operators import Attention, DecoderLayer, Norm, Operators

Weights = Callable[[str], torch.Tensor]
"""Takes a checkpoint's tensor by name, in the wanted type and on the wanted device."""


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
        self._embedding = weights("model.embed_tokens.weight")
        layers = [
            _layer(facts, weights, operators, attention, index)
            for index in range(facts.num_hidden_layers)
        ]
        self._layers = operators.layers(layers, on_layer)
        tied = facts.tie_word_embeddings
        self._head = operators.linear(
            self._embedding if tied else weights("lm_head.weight"),
            norm=Norm(weights("model.norm.weight"), facts.rms_norm_eps),
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
        return self._layers(F.embedding(token_ids, self._embedding), caches, step, rows)

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[rows, E] to [rows, V] in float32."""
        return self._head(hidden_states)


def _layer(
    facts: ModelFacts, weights: Weights, operators: Operators, attention: Attention, index: int
) -> DecoderLayer:
    prefix = f"model.layers.{index}."

    def joined(
        module: str, names: tuple[str, ...], bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        paths = [f"{prefix}{module}.{name}_proj." for name in names]
        weight = torch.cat([weights(path + "weight") for path in paths])
        return weight, torch.cat([weights(path + "bias") for path in paths]) if bias else None

    def norm(name: str) -> Norm:
        return Norm(weights(f"{prefix}{name}.weight"), facts.rms_norm_eps)

    return DecoderLayer(
        qkv=operators.linear(
            *joined("self_attn", ("q", "k", "v"), facts.attention_bias),
            norm=norm("input_layernorm"),
        ),
        attention=attention.layer(
            facts.window(index),
            (norm("self_attn.q_norm"), norm("self_attn.k_norm")) if facts.qk_norm else None,
        ),
        out=operators.linear(*joined("self_attn", ("o",), facts.attention_output_bias)),
        gate_up=operators.linear(
            *joined("mlp", ("gate", "up"), facts.mlp_bias),
            norm=norm("post_attention_layernorm"),
            gated=True,
        ),
        down=operators.linear(*joined("mlp", ("down",), facts.mlp_bias)),
    )
