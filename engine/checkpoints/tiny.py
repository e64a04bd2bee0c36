"""Small Llama models with random weights and a byte-level tokenizer, for tests and smoke runs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoints.cache import Progress, cached_directory, silent
from engine.model.facts import ModelFacts
from engine.model.tensor_shapes import tensor_shapes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
NUM_TOKENS = 256 + len(SPECIAL_TOKENS)
"""Token ids 0-255 are bytes, then come the special tokens."""
END_OF_TEXT, BEGIN_TURN, END_TURN, PAD = range(256, NUM_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINY_FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    vocab_size=NUM_TOKENS,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=2048,
    dtype="float32",
    bos_token_id=BEGIN_TURN,
    eos_token_ids=(END_TURN,),
)
_CACHE_KEY = "tiny-1"  # count up when the files that are made change


def tiny_directory(seed: int, progress: Progress = silent) -> Path:
    """The Hugging Face directory of the tiny model with this seed, made the first time.

    Raises:
        ModelError: The cache cannot be written.
    """

    def build(directory: Path) -> None:
        write_random_checkpoint(directory, TINY_FACTS, seed)

    return cached_directory(f"{_CACHE_KEY}-seed{seed}", build, progress)


def write_random_checkpoint(directory: Path, facts: ModelFacts, seed: int = 0) -> None:
    """Writes a model with random weights: the same files for the same facts and seed.

    The weights are scaled so that greedy output neither repeats one token nor hangs on near ties.

    Args:
        directory: An existing directory.
        facts: Sizes, biases, tied embeddings or not, and dtype; at least NUM_TOKENS in the
            vocabulary.
        seed: Of the random numbers.
    """
    # Only needed when the model is not in the cache.
    import numpy as np

    from engine.checkpoints.writer import encode, write_config, write_tokenizer, write_weights

    assert facts.vocab_size >= NUM_TOKENS
    random = np.random.default_rng(seed)
    tensors = {
        name: encode(_random_tensor(random, name, shape), facts.dtype)
        for name, shape in tensor_shapes(facts).items()
    }
    write_config(directory, facts, pad_token_id=PAD)
    write_tokenizer(
        directory,
        _byte_tokenizer(),
        special_tokens=list(SPECIAL_TOKENS),
        named_tokens={
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
        },
        chat_template=CHAT_TEMPLATE,
        max_length=facts.max_position_embeddings,
    )
    write_weights(directory, tensors, facts.dtype)


def _random_tensor(
    random: "np.random.Generator", name: str, shape: tuple[int, ...]
) -> "NDArray[np.float32]":
    """Normal noise; scales found by trial: of 200 greedy tokens 80 to 120 are different."""
    noise: NDArray[np.float32] = random.standard_normal(shape, dtype="float32")
    if "norm" in name:
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed_tokens" in name or "lm_head" in name:
        # Logits then deviate by 3. Small beside what the layers add: the next token depends on
        # the whole text, also where the embeddings are tied.
        return noise * (3 / math.sqrt(shape[1]))
    return noise * (2 / math.sqrt(shape[1]))


def _byte_tokenizer() -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    vocabulary |= {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level tokenizers.

    Source: GPT-2, encoder.py, bytes_to_unicode: printable Latin-1 stands for itself, the other
    bytes, in order, for the characters from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
