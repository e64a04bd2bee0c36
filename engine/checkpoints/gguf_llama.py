"""Turns a GGUF file of a Llama model into a Hugging Face directory in bfloat16."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.checkpoints.cache import Progress
from engine.checkpoints.writer import encode, write_config, write_tokenizer, write_weights
from engine.model.facts import ModelFacts

# Source: gguf-py, gguf/tensor_mapping.py.
_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
_PROGRESS_TENSORS = 68  # a line per quarter of a model of 30 layers


def convert(file: Path, directory: Path, progress: Progress) -> None:
    """Writes the model in `file` to `directory`.

    Raises:
        OSError: A file cannot be written.
    """
    progress(f"converting {file.name}")
    reader = gguf.GGUFReader(file)  # takes as long as the weights
    facts = _facts(reader)
    write_config(directory, facts, pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"))
    _convert_tokenizer(reader, directory, facts)
    tensors: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(reader.tensors):
        if index % _PROGRESS_TENSORS == 0:
            progress(f"converting {file.name}: {100 * index // len(reader.tensors)} %")
        name = _tensor_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            weight = _half_rotation(weight, facts.num_attention_heads)
        if name.endswith("k_proj.weight"):
            weight = _half_rotation(weight, facts.num_key_value_heads)
        tensors[name] = encode(weight, facts.dtype)
    write_weights(directory, tensors, facts.dtype)


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def _facts(reader: gguf.GGUFReader) -> ModelFacts:
    hidden_size = _field(reader, "llama.embedding_length")
    num_heads = _field(reader, "llama.attention.head_count")
    return ModelFacts(
        architecture="LlamaForCausalLM",
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        head_dim=hidden_size // num_heads,
        max_position_embeddings=_field(reader, "llama.context_length"),
        # GGUF keeps it in float32: 1e-5 comes back as 9.999999747378752e-06.
        rms_norm_eps=float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=_field(reader, "llama.rope.freq_base"),
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        dtype="bfloat16",
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_ids=(_field(reader, "tokenizer.ggml.eos_token_id"),),
    )


def _tensor_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_TENSOR_NAMES[parts[2]]}.{parts[3]}"
    return f"{_TENSOR_NAMES[parts[0]]}.{parts[1]}"


def _half_rotation(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undoes llama.cpp's order of rows: it rotates neighbours, transformers rotates halves.

    Source: transformers, modeling_gguf_pytorch_utils.py, LlamaTensorProcessor.
    """
    pairs = weight.shape[0] // num_heads // 2
    rows = weight.reshape(num_heads, pairs, 2, -1).swapaxes(1, 2)
    return rows.reshape(weight.shape)


def _convert_tokenizer(reader: gguf.GGUFReader, directory: Path, facts: ModelFacts) -> None:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # What `tokenizer.ggml.pre` calls smollm; without Digits "a  1" is cut in another way.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    write_tokenizer(
        directory,
        tokenizer,
        special_tokens=[
            token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN
        ],
        named_tokens={
            f"{short}_token": tokens[_field(reader, f"tokenizer.ggml.{long}_token_id")]
            for short, long in names.items()
        },
        chat_template=_field(reader, "tokenizer.chat_template"),
        max_length=facts.max_position_embeddings,
    )
