"""Small random models of the supported families, made by transformers' own classes."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500.0,
}
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 500.0,
}

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama with llama3 rope, heads of 20 and all biases": LlamaConfig(
        **SIZES,
        hidden_size=80,
        rope_parameters=LLAMA3,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "mistral with linear rope, a window and heads of 24": MistralConfig(
        **SIZES, hidden_size=64, head_dim=24, sliding_window=48, rope_parameters=LINEAR
    ),
    "qwen2 with yarn and windows from layer 1": Qwen2Config(
        **SIZES,
        hidden_size=64,
        rope_parameters=YARN,
        use_sliding_window=True,
        sliding_window=33,
        max_window_layers=1,
    ),
    "qwen2 without windows, tied": Qwen2Config(**SIZES, hidden_size=64, tie_word_embeddings=True),
    "qwen3 with wide heads": Qwen3Config(
        **SIZES, hidden_size=64, head_dim=32, tie_word_embeddings=True
    ),
    "qwen3 with biases and windows in two layers": Qwen3Config(
        **SIZES,
        hidden_size=64,
        head_dim=18,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def write_model(directory: Path, config: PreTrainedConfig, seed: int = 0) -> None:
    """Writes a model of these sizes to a directory, its weights in several files.

    The weights are scaled as `write_random_checkpoint` does it. No bias is 0 and no norm is 1, as
    transformers has them at first: one that is forgotten would not be seen.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if "norm" in name:
                weight.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.1 * noise)
            else:
                scale = 3 if "embed_tokens" in name or "lm_head" in name else 2
                weight.copy_(noise * scale / math.sqrt(weight.shape[1]))
    model.save_pretrained(directory, max_shard_size="150KB")
    assert (directory / "model.safetensors.index.json").exists()
