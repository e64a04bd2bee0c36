"""What a plan must know of a model: sizes, types, limits. Read from config.json, without torch."""

from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of one decoder-only model. Field names follow Hugging Face's config.json."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float32"
    """Type of the checkpoint: float32, bfloat16 or float16."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a text."""
    num_experts: int = 0
    """0: a dense model."""

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size
        heads = embeddings if self.tie_word_embeddings else 2 * embeddings
        return heads + self.num_hidden_layers * self._layer_parameters() + self.hidden_size

    def weight_bytes(self, dtype: str) -> int:
        """Memory of the weights held as `dtype`."""
        return self.num_parameters * BYTES_PER_ELEMENT[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Memory of the keys and values of one token, all layers, held as `dtype`."""
        elements = 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim
        return elements * BYTES_PER_ELEMENT[dtype]

    def _layer_parameters(self) -> int:
        hidden, inner = self.hidden_size, self.intermediate_size
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        attention = 2 * hidden * (query + key)
        if self.attention_bias:
            attention += query + 2 * key + hidden
        mlp = 3 * hidden * inner
        if self.mlp_bias:
            mlp += 2 * inner + hidden
        router = hidden * self.num_experts
        return attention + mlp * max(1, self.num_experts) + router + 2 * hidden


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
    _refuse_unsupported(config, architecture)
    is_mistral = architecture == "MistralForCausalLM"
    hidden_size = _integer(config, "hidden_size")
    num_heads = _integer(config, "num_attention_heads")
    # Source: transformers, configuration_mistral.py and configuration_llama.py.
    num_kv_heads = _integer(config, "num_key_value_heads", 8 if is_mistral else num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads is not a multiple of num_key_value_heads"
            f" ({num_kv_heads}): {num_heads}",
            _DAMAGED,
        )
    return ModelFacts(
        architecture=architecture,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_hidden_layers=_integer(config, "num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=_head_dim(config, hidden_size, num_heads),
        max_position_embeddings=_integer(config, "max_position_embeddings"),
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
        tie_word_embeddings=_flag(config, "tie_word_embeddings"),
        # Mistral has no biases, whatever its config.json says.
        attention_bias=not is_mistral and _flag(config, "attention_bias"),
        mlp_bias=not is_mistral and _flag(config, "mlp_bias"),
        dtype=_dtype(config),
        bos_token_id=_bos_token_id(config),
        eos_token_ids=_eos_token_ids(config, generation or {}),
    )


_DAMAGED = "take config.json from the model's own repository again"


def _architecture(config: dict[str, Any]) -> str:
    supported = f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelError(f"config.json: architectures is not a list of names: {names!r}", supported)
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ModelError(f"architecture is not supported: {names[0]}", supported)
    return str(names[0])


def _refuse_unsupported(config: dict[str, Any], architecture: str) -> None:
    if config.get("quantization_config"):
        raise ModelError(
            f"quantised checkpoints are not supported: {config['quantization_config']}",
            "take the model's float32, bfloat16 or float16 checkpoint",
        )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"hidden_act is not supported: {activation}", "supported: silu")
    if architecture == "MistralForCausalLM":
        # Source: transformers, configuration_mistral.py: 4096 where the key is missing.
        if config.get("sliding_window", 4096) is None:
            return
        window = _integer(config, "sliding_window", 4096)
        if window < _integer(config, "max_position_embeddings"):
            raise ModelError(
                f"attention with a sliding window is not supported: sliding_window={window}",
                "take a Mistral without one, such as mistralai/Mistral-7B-Instruct-v0.3",
            )


def _rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary embedding; transformers 5 keeps it in `rope_parameters`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelError(f"config.json: rope_parameters is not an object: {rope!r}", _DAMAGED)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ModelError(
            f"rope scaling is not supported yet: {kind}",
            "supported: rope_type default; take a model without rope scaling",
        )
    rotary = {**config, **rope}
    if rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"partial rotary embeddings are not supported: {rotary['partial_rotary_factor']}",
            "supported: partial_rotary_factor 1.0",
        )
    return _number(rotary, "rope_theta", 10000.0)


def _head_dim(config: dict[str, Any], hidden_size: int, num_heads: int) -> int:
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise ModelError(
            f"config.json: hidden_size is not a multiple of num_attention_heads ({num_heads}):"
            f" {hidden_size}",
            _DAMAGED,
        )
    head_dim = _integer(config, "head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise ModelError(f"config.json: head_dim must be even: {head_dim}", _DAMAGED)
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
    return _integer(config, "bos_token_id", minimum=0)


def _eos_token_ids(*configs: dict[str, Any]) -> tuple[int, ...]:
    """The end tokens of all `configs`, each once, in the order they come in."""
    tokens: dict[int, None] = {}
    for config in configs:
        value = config.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is not None:
                tokens[_integer({"eos_token_id": token}, "eos_token_id", minimum=0)] = None
    return tuple(tokens)


def _integer(config: dict[str, Any], key: str, default: int | None = None, minimum: int = 1) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"config.json lacks a key: {key}", _DAMAGED)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ModelError(
            f"config.json: {key} is not an integer of at least {minimum}: {value!r}", _DAMAGED
        )
    return value


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelError(f"config.json: {key} is not a positive number: {value!r}", _DAMAGED)
    return float(value)


def _flag(config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise ModelError(f"config.json: {key} is neither true nor false: {value!r}", _DAMAGED)
    return bool(value)
