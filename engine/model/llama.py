"""The Llama family: Llama, SmolLM and Mistral without a sliding window.

Shapes: T tokens of a step, E hidden size, H query heads, K key-value heads, D head size, F
intermediate size, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine.model.attention import AttentionStep, PagedAttention, PagedCache
from engine.model.facts import ModelFacts
from engine.model.linear import make_linear

Weights = Callable[[str], torch.Tensor]
"""Gives the checkpoint's tensor of a name, in the wanted type and on the wanted device."""


class Llama:
    """A decoder-only transformer: tokens to hidden states, hidden states to logits.

    Args:
        max_len: Most positions that will be asked for.
        on_layer: Called after each layer: a sign of life within long steps.
    """

    def __init__(
        self,
        facts: ModelFacts,
        weights: Weights,
        attention: PagedAttention,
        max_len: int,
        on_layer: Callable[[], None],
    ) -> None:
        self._on_layer = on_layer
        self._facts = facts
        self._attention = attention
        self._embedding = weights("model.embed_tokens.weight")
        self._layers = [
            _Layer(facts, weights, attention, f"model.layers.{index}.")
            for index in range(facts.num_hidden_layers)
        ]
        self._norm = weights("model.norm.weight")
        tied = facts.tie_word_embeddings
        self._head = make_linear(self._embedding if tied else weights("lm_head.weight"))
        self._cos, self._sin = _rotary_tables(facts, max_len, self._embedding)

    def hidden_states(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        step: AttentionStep,
        caches: list[PagedCache],
    ) -> torch.Tensor:
        """[T] token ids and positions to [T, E], before the last norm."""
        x = F.embedding(token_ids, self._embedding)
        rotation = (
            F.embedding(positions, self._cos)[:, None],
            F.embedding(positions, self._sin)[:, None],
        )
        for layer, cache in zip(self._layers, caches, strict=True):
            x = layer(x, rotation, step, cache)
            self._on_layer()
        return x

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[rows, E] to [rows, V]."""
        return self._head(_rms_norm(hidden_states, self._norm, self._facts.rms_norm_eps))


class _Layer:
    def __init__(
        self, facts: ModelFacts, weights: Weights, attention: PagedAttention, prefix: str
    ) -> None:
        self._facts = facts
        self._attention = attention
        self._input_norm = weights(prefix + "input_layernorm.weight")
        self._post_norm = weights(prefix + "post_attention_layernorm.weight")

        def joined(
            module: str, names: tuple[str, ...], bias: bool
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            paths = [f"{prefix}{module}.{name}_proj." for name in names]
            weight = torch.cat([weights(path + "weight") for path in paths])
            return weight, torch.cat([weights(path + "bias") for path in paths]) if bias else None

        self._qkv = make_linear(*joined("self_attn", ("q", "k", "v"), facts.attention_bias))
        self._out = make_linear(*joined("self_attn", ("o",), facts.attention_bias))
        self._gate_up = make_linear(*joined("mlp", ("gate", "up"), facts.mlp_bias))
        self._down = make_linear(*joined("mlp", ("down",), facts.mlp_bias))

    def __call__(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        step: AttentionStep,
        cache: PagedCache,
    ) -> torch.Tensor:
        facts = self._facts
        qkv = self._qkv(_rms_norm(x, self._input_norm, facts.rms_norm_eps))
        heads = qkv.view(x.shape[0], -1, facts.head_dim)
        _rotate_(heads[:, : facts.num_attention_heads + facts.num_key_value_heads], *rotation)
        queries = heads[:, : facts.num_attention_heads]
        keys_values = heads[:, facts.num_attention_heads :]
        attended = self._attention(queries, keys_values, cache, step)
        x = self._out(attended, x)
        gate_up = self._gate_up(_rms_norm(x, self._post_norm, facts.rms_norm_eps))
        gate, up = gate_up.chunk(2, dim=-1)
        return self._down(F.silu(gate).mul_(up), x)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary embedding of [T, heads, D] in place; `sin` carries the sign of the swapped halves.

    Source: RoFormer (arXiv 2104.09864), in the half-split order of Llama checkpoints.
    """
    torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin, out=x)


def _rotary_tables(
    facts: ModelFacts, max_len: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin for every position, [max_len, D]."""
    half = facts.head_dim // 2
    frequencies = 1.0 / facts.rope_theta ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(like), torch.cat((-sin, sin), dim=-1).to(like)
