from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.checkpoints.directory import check_directory, read_facts
from engine.checkpoints.tiny import (
    BEGIN_TURN,
    END_TURN,
    PAD,
    TINY_FACTS,
    tiny_directory,
    write_random_checkpoint,
)
from engine.model.facts import ModelFacts
from engine.model.tensor_shapes import tensor_shapes

VARIANTS = {
    "tiny": TINY_FACTS,
    "tied": replace(TINY_FACTS, tie_word_embeddings=True),
    "one key head per query head": replace(TINY_FACTS, num_key_value_heads=4),
    "three query heads per key head": replace(
        TINY_FACTS, hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=16
    ),
    "wide heads": replace(TINY_FACTS, head_dim=32),
    "biases": replace(TINY_FACTS, attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "bfloat16": replace(TINY_FACTS, dtype="bfloat16"),
    "other limits": replace(
        TINY_FACTS, rope_theta=5e5, rms_norm_eps=1e-6, vocab_size=300, eos_token_ids=(256, 258)
    ),
}
variants = pytest.mark.parametrize("facts", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.mark.usefixtures("cache")
def test_the_same_seed_gives_the_same_files(tmp_path: Path):
    write_random_checkpoint(tmp_path, TINY_FACTS, seed=7)
    directory = tiny_directory(seed=7)
    files = [file.name for file in tmp_path.iterdir() if file.is_file()]
    assert len(files) == 6
    for name in files:
        assert (directory / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.usefixtures("cache")
def test_each_seed_has_its_own_model():
    first, second = tiny_directory(seed=0), tiny_directory(seed=1)
    weights = [(directory / "model.safetensors").read_bytes() for directory in (first, second)]
    assert weights[0] != weights[1]


@variants
def test_a_random_checkpoint_says_what_it_was_made_from(tmp_path: Path, facts: ModelFacts):
    write_random_checkpoint(tmp_path, facts)
    check_directory(tmp_path)
    assert read_facts(tmp_path) == facts


@variants
def test_transformers_loads_it_and_its_greedy_text_is_varied(tmp_path: Path, facts: ModelFacts):
    write_random_checkpoint(tmp_path, facts)
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert model.num_parameters() == facts.num_parameters
    assert str(model.dtype) == f"torch.{facts.dtype}"
    output = model.generate(
        torch.tensor([[72, 101, 108, 108, 111]]),
        max_new_tokens=100,
        min_new_tokens=100,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert len(set(output.sequences[0, -50:].tolist())) > 20
    if facts.dtype == "float32":
        best = torch.cat(output.scores).topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-4


@variants
def test_shapes_and_sizes_agree(facts: ModelFacts):
    shapes = tensor_shapes(facts).values()
    assert sum(torch.Size(shape).numel() for shape in shapes) == facts.num_parameters


def test_token_ids_are_bytes(checkpoint: Path):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = "a  1\n\n3  4\t\x00 ÄÖ 日本語 🚀"
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_special_tokens_are_one_id_and_not_decoded(checkpoint: Path):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>").ids
    assert ids == [BEGIN_TURN, *b"hi", END_TURN]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.get_vocab_size() == TINY_FACTS.vocab_size


def test_transformers_reads_tokenizer_and_chat_template(checkpoint: Path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BEGIN_TURN, END_TURN)
    assert tokenizer.pad_token_id == PAD
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
