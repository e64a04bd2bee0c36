"""What a config.json says of the rotary embedding.

Source: transformers, modeling_rope_utils.py. transformers 5 keeps all of it in `rope_parameters`;
4 has `rope_theta` beside the other keys and the rest in `rope_scaling`.
"""

import math
from typing import Any

from engine.checkpoints.config_values import DAMAGED, flag, integer, number
from engine.errors import ModelError
from engine.model.facts import RopeKind, RopeScaling

SUPPORTED_ROPE_TYPES = ("default", "dynamic", *(kind.value for kind in RopeKind))


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the rotary embedding, all in one place and of a supported kind.

    Raises:
        ModelError: The kind is not supported, or the parameters are no object.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ModelError(f"config.json: rope_parameters is not an object: {rope!r}", DAMAGED)
    nested = [key for key, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise ModelError(
            f"rotary embeddings that differ by layer are not supported: {', '.join(nested)}",
            "take a model with the same rope_parameters in all layers",
        )
    outside = {key: config[key] for key in _OUTSIDE if config.get(key) is not None}
    found = {**outside, **rope}
    if "original_max_position_embeddings" in outside:  # the only one that wins over those inside
        found["original_max_position_embeddings"] = outside["original_max_position_embeddings"]
    kind = found["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"rope_type is not supported: {kind}", f"supported: {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"partial rotary embeddings are not supported: {found['partial_rotary_factor']}",
            "supported: partial_rotary_factor 1.0",
        )
    return found


_OUTSIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def rope_scaling(rope: dict[str, Any], max_position_embeddings: int) -> RopeScaling | None:
    """How frequencies are scaled; None: not at all.

    Args:
        rope: What `rope_parameters` gave.
        max_position_embeddings: Of config.json.

    Raises:
        ModelError: A key is missing or has the wrong type.
    """
    # Dynamic scaling begins beyond max_position_embeddings, and no request is longer.
    if rope["rope_type"] in ("default", "dynamic"):
        return None
    kind, factor = RopeKind(rope["rope_type"]), number(rope, "factor")
    if kind is RopeKind.linear:
        return RopeScaling(kind=kind, factor=factor)
    original = integer(rope, "original_max_position_embeddings", max_position_embeddings)
    if kind is RopeKind.llama3:
        low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
        if high <= low:
            raise ModelError(
                f"config.json: high_freq_factor is not above low_freq_factor ({low}): {high}",
                DAMAGED,
            )
        return RopeScaling(
            kind=kind,
            factor=factor,
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=number(rope, "beta_fast", 32.0),
        beta_slow=number(rope, "beta_slow", 1.0),
        truncate=flag(rope, "truncate", True),
        attention_factor=number(rope, "attention_factor", _attention_factor(rope, factor)),
    )


def _attention_factor(rope: dict[str, Any], factor: float) -> float:
    """What yarn takes where `attention_factor` is missing."""

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(number(rope, "mscale")) / scale(number(rope, "mscale_all_dim"))
    return scale(1.0)
