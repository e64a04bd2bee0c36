"""What a Hugging Face config.json says of a model, and which models are supported."""

from dataclasses import dataclass
from typing import Any

from engine.checkpoints.config_rope import rope_parameters, rope_scaling
from engine.checkpoints.config_values import DAMAGED, flag, integer, number
from engine.errors import ModelError
from engine.model.facts import BYTES_PER_ELEMENT, ModelFacts, RopeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What an architecture has, and what of it its config.json decides.

    Source: transformers, configuration_*.py and modeling_*.py of each.
    """

    num_key_value_heads: int | None = None
    """Where the key is missing; None: as many as query heads."""
    head_dim: int | None = None
    """Where the key is missing; None: hidden_size / num_attention_heads."""
    reads_attention_bias: bool = False
    """Whether `attention_bias` of config.json decides, on all four projections."""
    qkv_bias: bool = False
    """Always on query, key and value projections."""
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    has_windows: bool = False
    reads_use_sliding_window: bool = False
    """Whether windows need `use_sliding_window`, and then begin at layer `max_window_layers`."""


_FAMILIES = {
    "LlamaForCausalLM": _Family(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": _Family(num_key_value_heads=8, has_windows=True),
    "Qwen2ForCausalLM": _Family(
        num_key_value_heads=32, qkv_bias=True, has_windows=True, reads_use_sliding_window=True
    ),
    "Qwen3ForCausalLM": _Family(
        num_key_value_heads=32,
        head_dim=128,
        reads_attention_bias=True,
        qk_norm=True,
        has_windows=True,
        reads_use_sliding_window=True,
    ),
}
SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)
_FULL, _SLIDING = "full_attention", "sliding_attention"


def facts_from_config(
    config: dict[str, Any], generation: dict[str, Any] | None = None
) -> ModelFacts:
    """The facts in a Hugging Face config.json, as transformers 4 and 5 write it.

    A key that is not there means what transformers takes it to mean.

    Args:
        config: The content of config.json.
        generation: The content of generation_config.json; its end tokens count too.

    Raises:
        ModelError: A key is missing or has the wrong type, or the model is not supported.
    """
    architecture = _architecture(config)
    _refuse_unsupported(config)
    family = _FAMILIES[architecture]
    attention_bias = family.reads_attention_bias and flag(config, "attention_bias")
    num_layers = integer(config, "num_hidden_layers")
    longest = integer(config, "max_position_embeddings")
    rope = rope_parameters(config)
    scaling = rope_scaling(rope, longest)
    if scaling is not None and scaling.kind is RopeKind.yarn:
        # Qwen's published config.json have the trained length there, also with yarn.
        longest = max(longest, int(scaling.factor * scaling.original_max_position_embeddings))
    window, sliding_layers = _windows(config, family, num_layers, longest)
    return ModelFacts(
        architecture=architecture,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=integer(config, "hidden_size"),
        intermediate_size=integer(config, "intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=integer(config, "num_attention_heads"),
        num_key_value_heads=_num_key_value_heads(config, family),
        head_dim=_head_dim(config, family),
        max_position_embeddings=longest,
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope_theta=number(rope, "rope_theta", 10000.0),
        rope_scaling=scaling,
        sliding_window=window,
        sliding_layers=sliding_layers,
        tie_word_embeddings=flag(config, "tie_word_embeddings"),
        attention_bias=attention_bias or family.qkv_bias,
        attention_output_bias=attention_bias,
        mlp_bias=family.reads_mlp_bias and flag(config, "mlp_bias"),
        qk_norm=family.qk_norm,
        dtype=_dtype(config),
        bos_token_id=_bos_token_id(config),
        eos_token_ids=_eos_token_ids(config, generation or {}),
    )


def _architecture(config: dict[str, Any]) -> str:
    supported = f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelError(f"config.json: architectures is not a list of names: {names!r}", supported)
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ModelError(f"architecture is not supported: {names[0]}", supported)
    return str(names[0])


def _refuse_unsupported(config: dict[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            raise ModelError(
                f"quantised checkpoints are not supported: {config[key]}",
                "take the model's float32, bfloat16 or float16 checkpoint",
            )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"hidden_act is not supported: {activation}", "supported: silu")


def _windows(
    config: dict[str, Any], family: _Family, num_layers: int, longest: int
) -> tuple[int | None, tuple[int, ...]]:
    """Tokens of the sliding window and the layers that have it; one that never cuts is none.

    In transformers every layer of a Mistral has the window; here `layer_types` counts there too.
    """
    if not family.has_windows:
        return None, ()
    first = 0
    if family.reads_use_sliding_window:
        if not flag(config, "use_sliding_window"):
            return None, ()
        first = integer(config, "max_window_layers", 28, minimum=0)
    if config.get("sliding_window", 4096) is None:
        return None, ()
    window = integer(config, "sliding_window", 4096)
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_SLIDING if layer >= first else _FULL for layer in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise ModelError(f"config.json: layer_types is not one for each layer: {kinds!r}", DAMAGED)
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise ModelError(
                f"layer_types are not supported: {kind}", f"supported: {_FULL}, {_SLIDING}"
            )
    layers = tuple(index for index, kind in enumerate(kinds) if kind == _SLIDING)
    return (window, layers) if layers and window < longest else (None, ())


def _num_key_value_heads(config: dict[str, Any], family: _Family) -> int:
    num_heads = integer(config, "num_attention_heads")
    default = num_heads
    if "num_key_value_heads" not in config:
        default = family.num_key_value_heads or num_heads
    num_kv_heads = integer(config, "num_key_value_heads", default)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads is not a multiple of num_key_value_heads"
            f" ({num_kv_heads}): {num_heads}",
            DAMAGED,
        )
    return num_kv_heads


def _head_dim(config: dict[str, Any], family: _Family) -> int:
    hidden_size, num_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    default = family.head_dim or hidden_size // num_heads
    if config.get("head_dim") is None and family.head_dim is None and hidden_size % num_heads:
        raise ModelError(
            f"config.json: hidden_size is not a multiple of num_attention_heads ({num_heads}):"
            f" {hidden_size}",
            DAMAGED,
        )
    head_dim = integer(config, "head_dim", default)
    if head_dim % 2:
        raise ModelError(f"config.json: head_dim must be even: {head_dim}", DAMAGED)
    return head_dim


def _dtype(config: dict[str, Any]) -> str:
    """Type of the checkpoint: `dtype` in transformers 5, `torch_dtype` in 4."""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = dtype.removeprefix("torch.")
    if dtype not in BYTES_PER_ELEMENT:
        supported = f"supported: {', '.join(BYTES_PER_ELEMENT)}"
        raise ModelError(f"config.json: dtype is not supported: {dtype}", supported)
    return dtype


def _bos_token_id(config: dict[str, Any]) -> int | None:
    if config.get("bos_token_id") is None:
        return None
    return integer(config, "bos_token_id", minimum=0)


def _eos_token_ids(*configs: dict[str, Any]) -> tuple[int, ...]:
    """The end tokens of all `configs`, each once, in the order they come in."""
    tokens: dict[int, None] = {}
    for config in configs:
        value = config.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is not None:
                tokens[integer({"eos_token_id": token}, "eos_token_id", minimum=0)] = None
    return tuple(tokens)
