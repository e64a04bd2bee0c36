import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoints.directory import check_directory, read_facts, weight_files
from engine.checkpoints.tiny import TINY_FACTS
from engine.errors import ModelError

INDEX = "model.safetensors.index.json"


def test_a_complete_directory_passes(checkpoint: Path):
    check_directory(checkpoint)
    assert weight_files(checkpoint) == [checkpoint / "model.safetensors"]


def test_weights_in_several_files_pass(checkpoint: Path):
    split_weights(checkpoint)
    check_directory(checkpoint)
    assert weight_files(checkpoint) == [checkpoint / "a.safetensors", checkpoint / "b.safetensors"]


def test_every_file_of_the_index_must_be_there(checkpoint: Path):
    split_weights(checkpoint)
    (checkpoint / "b.safetensors").unlink()
    assert refused(checkpoint) == (
        f"weights that {INDEX} lists are missing: b.safetensors in {checkpoint}"
    )


def test_an_index_without_a_map_is_refused(checkpoint: Path):
    (checkpoint / INDEX).write_text("{}")
    assert refused(checkpoint) == f"{INDEX} has no weight_map: {checkpoint / INDEX}"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str):
    (checkpoint / name).unlink()
    assert refused(checkpoint) == f"{name} is missing: {checkpoint}"


def test_a_sentencepiece_tokenizer_alone_is_not_enough(checkpoint: Path):
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer.model")
    with pytest.raises(ModelError, match="SentencePiece format only") as error:
        check_directory(checkpoint)
    assert f'd="{checkpoint}"; t.AutoTokenizer.from_pretrained(d)' in error.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.Q4_1.gguf", "consolidated.00.pth"])
def test_weights_in_another_format_are_named(checkpoint: Path, name: str):
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    assert refused(checkpoint) == f"weights are not in safetensors format: {name} in {checkpoint}"


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x02\0\0\0\0\0\0\0{}"],
    ids=["empty", "git-lfs pointer", "no tensors"],
)
def test_weights_that_are_no_safetensors_are_refused(checkpoint: Path, content: bytes):
    (checkpoint / "model.safetensors").write_bytes(content)
    assert refused(checkpoint).startswith("not a safetensors file: ")


def test_weights_cut_short_are_refused(checkpoint: Path):
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:-1])
    expected = f"model.safetensors has {len(content) - 1} bytes, not {len(content)}"
    assert refused(checkpoint).endswith(expected)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_hidden_layers", 4, "model.layers.3.input_layernorm.weight is missing"),
        ("vocab_size", 300, "model.embed_tokens.weight has shape [260, 64], not [300, 64]"),
        ("intermediate_size", 80, "model.layers.0.mlp.gate_proj.weight has shape [160, 64]"),
    ],
)
def test_weights_of_another_model_are_refused(checkpoint: Path, key: str, value, reason: str):
    edit_config(checkpoint, lambda config: config.update({key: value}))
    assert refused(checkpoint).startswith(f"weights do not fit config.json, {reason}")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_quantised_weights_are_refused_though_config_json_says_nothing(checkpoint: Path, dtype):
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, checkpoint / "model.safetensors")
    assert refused(checkpoint).startswith(
        "weights are quantised or of a type that is not supported"
    )


def test_tensors_that_nothing_reads_do_no_harm(checkpoint: Path):
    edit_config(checkpoint, lambda config: config.update(tie_word_embeddings=True))
    check_directory(checkpoint)


def test_a_damaged_tokenizer_is_refused(checkpoint: Path):
    content = (checkpoint / "tokenizer.json").read_bytes()
    (checkpoint / "tokenizer.json").write_bytes(content[:-9])
    assert refused(checkpoint).startswith("not valid JSON: ")


@pytest.mark.parametrize(("content", "reason"), [("{", "not valid JSON"), ("[]", "not a JSON obj")])
def test_a_damaged_config_is_refused(checkpoint: Path, content: str, reason: str):
    (checkpoint / "config.json").write_text(content)
    assert refused(checkpoint).startswith(reason)


def test_end_tokens_of_both_files_count(checkpoint: Path):
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    assert read_facts(checkpoint).eos_token_ids == (258, 256)


def test_the_generation_config_may_be_missing(checkpoint: Path):
    (checkpoint / "generation_config.json").unlink()
    assert read_facts(checkpoint) == TINY_FACTS


def test_a_config_without_a_type_means_that_of_the_weights(checkpoint: Path):
    edit_config(checkpoint, lambda config: config.pop("torch_dtype"))
    tensors = load_file(checkpoint / "model.safetensors")
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, checkpoint / "model.safetensors")
    assert read_facts(checkpoint).dtype == "float16"


def test_facts_are_read_before_the_weights_are_there(checkpoint: Path):
    edit_config(checkpoint, lambda config: config.pop("torch_dtype"))
    (checkpoint / "model.safetensors").unlink()
    assert read_facts(checkpoint) == TINY_FACTS


def split_weights(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, checkpoint / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "model.safetensors").unlink()


def edit_config(checkpoint: Path, edit: Callable[[dict], object]) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    edit(config)
    (checkpoint / "config.json").write_text(json.dumps(config))


def refused(checkpoint: Path) -> str:
    with pytest.raises(ModelError) as error:
        check_directory(checkpoint)
    assert error.value.hint
    return str(error.value)
