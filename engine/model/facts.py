"""What a plan must know of a model: sizes, types, limits. Without torch."""

from dataclasses import dataclass
from enum import Enum

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
HEAD_STEP = 16
"""The C kernels keep keys and values of heads filled up to a multiple of so many elements."""


class RopeKind(Enum):
    """How a rotary embedding is stretched to longer texts than it was trained on."""

    linear = "linear"
    llama3 = "llama3"
    yarn = "yarn"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """A rotary embedding with other frequencies. Field names follow config.json."""

    kind: RopeKind
    factor: float
    """Low frequencies are divided by it; `linear`: all."""
    original_max_position_embeddings: int = 0
    """llama3, yarn: the longest text before."""
    low_freq_factor: float = 1.0
    """llama3: frequencies that turn fewer times than this in the original length are divided."""
    high_freq_factor: float = 4.0
    """llama3: those that turn more often than this stay."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this in the original length stay."""
    beta_slow: float = 1.0
    """yarn: those that turn fewer times than this are divided."""
    truncate: bool = True
    """yarn: the borders between the two are rounded to whole frequencies."""
    attention_factor: float = 1.0
    """yarn: cos and sin are multiplied by it."""


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
    """Tokens of the longest text; with yarn as many as it stretches to."""
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    """Tokens that a token of the `sliding_layers` sees, itself among them."""
    sliding_layers: tuple[int, ...] = ()
    """Indexes, from 0; the other layers see the whole text."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Of the query, key and value projections."""
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """An RMS norm of each query and key head, before the rotary embedding."""
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
        embeddings = self._embedding_parameters
        heads = embeddings if self.tie_word_embeddings else 2 * embeddings
        layer = self._layer_matrix_parameters + self._layer_vector_parameters
        return heads + self.num_hidden_layers * layer + self.hidden_size

    def weight_bytes(self, dtype: str) -> int:
        """Memory of the weights held as `dtype`."""
        return self.num_parameters * BYTES_PER_ELEMENT[dtype]

    def packed_bytes(self, dtype: str, quantized: bool) -> int:
        """Memory of the weights as the C kernels keep them.

        Args:
            dtype: Of what is not quantised.
            quantized: Linear layers, the head among them, have 8 bits and a float32 for each
                column; the embedding is kept besides.
        """
        if not quantized:
            return self.weight_bytes(dtype)
        layers, embeddings = self.num_hidden_layers, self._embedding_parameters
        matrices = layers * self._layer_matrix_parameters + embeddings
        others = layers * self._layer_vector_parameters + self.hidden_size + embeddings
        query, key = self._query_size, self._key_size
        mlp_columns = (2 * self.intermediate_size + self.hidden_size) * max(1, self.num_experts)
        columns = layers * (query + 2 * key + self.hidden_size + mlp_columns) + self.vocab_size
        scales = columns * BYTES_PER_ELEMENT["float32"]
        return matrices + scales + others * BYTES_PER_ELEMENT[dtype]

    def kv_bytes_per_token(self, dtype: str, padded: bool) -> int:
        """Memory of the keys and values of one token, all layers, held as `dtype`.

        Args:
            padded: Heads are filled up to a multiple of `HEAD_STEP`.
        """
        head_dim = self.head_dim + (-self.head_dim % HEAD_STEP if padded else 0)
        elements = 2 * self.num_hidden_layers * self.num_key_value_heads * head_dim
        return elements * BYTES_PER_ELEMENT[dtype]

    def window(self, layer: int) -> int | None:
        """Tokens that a token of a layer sees, itself among them; None: all before it."""
        return self.sliding_window if layer in self.sliding_layers else None

    @property
    def _embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def _query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def _key_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def _layer_matrix_parameters(self) -> int:
        hidden = self.hidden_size
        attention = 2 * hidden * (self._query_size + self._key_size)
        router = hidden * self.num_experts
        return attention + 3 * hidden * self.intermediate_size * max(1, self.num_experts) + router

    @property
    def _layer_vector_parameters(self) -> int:
        vectors = 2 * self.hidden_size
        if self.attention_bias:
            vectors += self._query_size + 2 * self._key_size
        if self.attention_output_bias:
            vectors += self.hidden_size
        if self.qk_norm:
            vectors += 2 * self.head_dim
        if self.mlp_bias:
            vectors += (2 * self.intermediate_size + self.hidden_size) * max(1, self.num_experts)
        return vectors
