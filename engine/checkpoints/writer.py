"""Writes the files of a Hugging Face model directory: config, tokenizer, weights."""

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer

from engine.checkpoints.config_json import facts_from_config
from engine.model.facts import ModelFacts

_MODEL_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}


def write_config(directory: Path, facts: ModelFacts, pad_token_id: int) -> None:
    """Writes config.json and generation_config.json, in the form that transformers 4 and 5 read."""
    tokens: dict[str, Any] = {
        "bos_token_id": facts.bos_token_id,
        "eos_token_id": _one_or_all(facts.eos_token_ids),
        "pad_token_id": pad_token_id,
    }
    config = {
        "architectures": [facts.architecture],
        "model_type": _MODEL_TYPES[facts.architecture],
        "hidden_act": "silu",
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.num_hidden_layers,
        "num_attention_heads": facts.num_attention_heads,
        "num_key_value_heads": facts.num_key_value_heads,
        "head_dim": facts.head_dim,
        "max_position_embeddings": facts.max_position_embeddings,
        "rms_norm_eps": facts.rms_norm_eps,
        "rope_theta": facts.rope_theta,
        "tie_word_embeddings": facts.tie_word_embeddings,
        "attention_bias": facts.attention_bias,
        "mlp_bias": facts.mlp_bias,
        "sliding_window": None,
        "torch_dtype": facts.dtype,
        **tokens,
    }
    assert facts_from_config(config) == facts, "facts that are not written here"
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", tokens)


def write_tokenizer(
    directory: Path,
    tokenizer: Tokenizer,
    special_tokens: list[str],
    named_tokens: Mapping[str, str],
    chat_template: str,
    max_length: int,
) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        directory: Where to.
        tokenizer: With its special tokens in the vocabulary, not yet known as special.
        special_tokens: Tokens that text is cut at and that decoding leaves out.
        named_tokens: What `bos_token`, `eos_token`, `pad_token` and `unk_token` are.
        chat_template: Jinja.
        max_length: Most tokens of one text.
    """
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
        **named_tokens,
    }
    _write_json(directory / "tokenizer_config.json", config)
    (directory / "chat_template.jinja").write_text(chat_template)


def encode(tensor: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """`tensor` as stored: float32, float16, or the upper halves of float32 for bfloat16."""
    if dtype != "bfloat16":
        return tensor.astype(dtype)
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    # Round half to even: add just under a half, and the rest of the half if the result is odd.
    bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (bits >> np.uint32(16)).astype(np.uint16)


def write_weights(directory: Path, tensors: Mapping[str, NDArray[Any]], dtype: str) -> None:
    """Writes model.safetensors.

    Args:
        directory: Where to.
        tensors: By their names in transformers; each is what `encode` made of it.
        dtype: float32, bfloat16 or float16.

    Raises:
        OSError: The file cannot be written.
    """
    # The specs hold addresses: these references keep the memory alive until it is written.
    stored = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=dtype, shape=tensor.shape, data_ptr=tensor.ctypes.data, data_len=tensor.nbytes
        )
        for name, tensor in stored.items()
    }
    file = directory / "model.safetensors"
    try:
        # transformers refuses files that do not say which framework they are for.
        serialize_file(specs, str(file), metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error


def _one_or_all(token_ids: tuple[int, ...]) -> int | list[int] | None:
    if len(token_ids) > 1:
        return list(token_ids)
    return token_ids[0] if token_ids else None


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
