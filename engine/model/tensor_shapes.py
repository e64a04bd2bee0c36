"""Which tensors a checkpoint of a model must have."""

from engine.model.facts import ModelFacts


def tensor_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's weights by their names in transformers."""
    hidden = facts.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (facts.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not facts.tie_word_embeddings:
        shapes["lm_head.weight"] = (facts.vocab_size, hidden)
    for layer in range(facts.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if facts.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (facts.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (facts.head_dim,)
        for name, shape, has_bias in _linear_layers(facts):
            shapes[f"{prefix}.{name}.weight"] = shape
            if has_bias:
                shapes[f"{prefix}.{name}.bias"] = shape[:1]
    return shapes


def _linear_layers(facts: ModelFacts) -> list[tuple[str, tuple[int, int], bool]]:
    """Name, shape (outputs, inputs) and whether there is a bias, for one layer of the model."""
    hidden, inner = facts.hidden_size, facts.intermediate_size
    query = facts.num_attention_heads * facts.head_dim
    key = facts.num_key_value_heads * facts.head_dim
    return [
        ("self_attn.q_proj", (query, hidden), facts.attention_bias),
        ("self_attn.k_proj", (key, hidden), facts.attention_bias),
        ("self_attn.v_proj", (key, hidden), facts.attention_bias),
        ("self_attn.o_proj", (hidden, query), facts.attention_output_bias),
        ("mlp.gate_proj", (inner, hidden), facts.mlp_bias),
        ("mlp.up_proj", (inner, hidden), facts.mlp_bias),
        ("mlp.down_proj", (hidden, inner), facts.mlp_bias),
    ]
