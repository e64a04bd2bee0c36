import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from engine.checkpoints.config_json import facts_from_config
from engine.checkpoints.directory import read_facts
from engine.errors import ModelError
from engine.model.facts import BYTES_PER_ELEMENT, ModelFacts
from engine.model.tensor_shapes import tensor_shapes
from tests.engine.families import FAMILIES, LLAMA3


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


# Llama-3.2-1B as transformers 4 writes it, less the rope scaling.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL: dict[str, Any] = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": None,
}
# Qwen2.5-0.5B and Qwen3-0.6B as transformers 4 writes them.
QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3: dict[str, Any] = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
WINDOWED = {**QWEN2, "use_sliding_window": True, "sliding_window": 4096}
SUPPORTED = "supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
ROPE_TYPES = "supported: default, dynamic, linear, llama3, yarn"


def test_a_config_of_transformers_4_is_read():
    assert facts_from_config(LLAMA) == ModelFacts(
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        dtype="bfloat16",
        bos_token_id=128000,
        eos_token_ids=(128001,),
    )


def test_a_config_of_transformers_5_says_the_same():
    changed = without(LLAMA, "torch_dtype", "rope_theta", "rope_scaling")
    changed["dtype"] = "bfloat16"
    changed["rope_parameters"] = {"rope_theta": 500000.0, "rope_type": "default"}
    assert facts_from_config(changed) == facts_from_config(LLAMA)


def test_keys_that_are_not_there_mean_what_transformers_takes_them_for():
    optional = (
        *("attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "mlp_bias"),
        *("num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta", "torch_dtype"),
    )
    facts = facts_from_config(without(LLAMA, *optional, "tie_word_embeddings"))
    assert (facts.num_key_value_heads, facts.head_dim) == (32, 64)
    assert (facts.rms_norm_eps, facts.rope_theta) == (1e-6, 10000.0)
    assert {facts.attention_bias, facts.mlp_bias, facts.tie_word_embeddings} == {False}
    assert (facts.dtype, facts.bos_token_id, facts.eos_token_ids) == ("float32", None, ())


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 0], None, (2, 0)),
        (2, {"eos_token_id": [0, 2, 5]}, (2, 0, 5)),
        (None, {"eos_token_id": 7}, (7,)),
        (0, {"eos_token_id": None}, (0,)),
        (None, {}, ()),
    ],
)
def test_end_tokens_are_merged(own: Any, generation: Any, expected: tuple[int, ...]):
    facts = facts_from_config({**LLAMA, "eos_token_id": own}, generation)
    assert facts.eos_token_ids == expected


@pytest.mark.parametrize("window", [None, 131072, 200000])
def test_a_mistral_whose_window_never_cuts_is_supported(window: int | None):
    facts = facts_from_config({**MISTRAL, "sliding_window": window, "attention_bias": True})
    assert facts.architecture == "MistralForCausalLM"
    assert not facts.attention_bias


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        ({**MISTRAL, "sliding_window": 4096}, 4096, range(16)),
        (without(MISTRAL, "sliding_window"), 4096, range(16)),
        ({**LLAMA, "sliding_window": 4096}, None, ()),
        (QWEN2, None, ()),
        (WINDOWED, 4096, (21, 22, 23)),
        (without(WINDOWED, "sliding_window"), 4096, (21, 22, 23)),
        (without(WINDOWED, "max_window_layers"), None, ()),
        ({**WINDOWED, "max_window_layers": 0}, 4096, range(24)),
        ({**WINDOWED, "sliding_window": 32768}, None, ()),
        (
            {**WINDOWED, "layer_types": ["sliding_attention"] + ["full_attention"] * 23},
            4096,
            (0,),
        ),
    ],
)
def test_windows_are_those_of_the_layers_that_have_one(
    config: dict[str, Any], window: int | None, layers: Iterable[int]
):
    facts = facts_from_config(config)
    assert (facts.sliding_window, facts.sliding_layers) == (window, tuple(layers))
    assert facts.window(0) == (window if 0 in layers else None)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_tensors_and_parameters_are_those_of_transformers(tmp_path: Path, config: PreTrainedConfig):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    facts = read_facts(tmp_path)
    assert facts.num_parameters == model.num_parameters()
    names = model.state_dict().keys() - ({"lm_head.weight"} if facts.tie_word_embeddings else set())
    assert tensor_shapes(facts) == {name: model.state_dict()[name].shape for name in names}


def test_yarn_stretches_the_longest_text():
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert facts_from_config({**QWEN3, "rope_scaling": stretched}).max_position_embeddings == 131072
    known = {**QWEN3, "max_position_embeddings": 131072, "rope_scaling": stretched}
    assert facts_from_config(known).max_position_embeddings == 131072


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor"])
@pytest.mark.parametrize("value", [None, "2", 0, float("nan"), float("inf")])
def test_a_scaling_that_lacks_a_number_is_refused(key: str, value: Any):
    scaling = {**LLAMA3, key: value}
    with pytest.raises(ModelError, match=rf"^config.json.*\b{key}\b"):
        facts_from_config({**LLAMA, "rope_scaling": scaling})


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        (
            {**LLAMA, "architectures": ["MixtralForCausalLM"]},
            "architecture is not supported: MixtralForCausalLM",
            SUPPORTED,
        ),
        (
            {**QWEN2, "architectures": ["Qwen3MoeForCausalLM"]},
            "architecture is not supported: Qwen3MoeForCausalLM",
            SUPPORTED,
        ),
        (
            {**LLAMA, "rope_scaling": {"rope_type": "longrope", "factor": 32.0}},
            "rope_type is not supported: longrope",
            ROPE_TYPES,
        ),
        (
            {**QWEN2, "rope_scaling": {"type": "mrope"}},
            "rope_type is not supported: mrope",
            ROPE_TYPES,
        ),
        (
            {**QWEN2, "rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rotary embeddings that differ by layer are not supported: full_attention",
            "take a model with the same rope_parameters",
        ),
        (
            {**WINDOWED, "layer_types": ["full_attention"] * 23 + ["chunked_attention"]},
            "layer_types are not supported: chunked_attention",
            "supported: full_attention, sliding_attention",
        ),
        (
            {**LLAMA, "partial_rotary_factor": 0.5},
            "partial rotary embeddings are not supported: 0.5",
            "supported: partial_rotary_factor 1.0",
        ),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act is not supported: gelu", "supported: silu"),
        (
            {**LLAMA, "quantization_config": {"quant_method": "gptq"}},
            "quantised checkpoints are not supported: {'quant_method': 'gptq'}",
            "take the model's float32",
        ),
        (
            {**LLAMA, "compression_config": {"format": "int-quantized"}},
            "quantised checkpoints are not supported: {'format': 'int-quantized'}",
            "take the model's float32",
        ),
        (
            {**LLAMA, "torch_dtype": "float64"},
            "config.json: dtype is not supported: float64",
            "supported: float32, bfloat16, float16",
        ),
    ],
)
def test_an_unsupported_model_is_refused(config: dict[str, Any], message: str, hint: str):
    with pytest.raises(ModelError) as error:
        facts_from_config(config)
    assert str(error.value) == message
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    "key",
    [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "max_position_embeddings"),
    ],
)
@pytest.mark.parametrize("value", ["missing", "12", 1.5, True, 0, -1, [1]])
def test_a_size_that_is_missing_or_no_count_is_named(key: str, value: Any):
    config = without(LLAMA, key) if value == "missing" else {**LLAMA, key: value}
    with pytest.raises(ModelError, match=rf"^config.json.*\b{key}\b") as error:
        facts_from_config(config)
    assert error.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("num_key_value_heads", 5),
        ("num_key_value_heads", "8"),
        ("head_dim", 63),
        ("head_dim", "64"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", 0),
        ("rope_parameters", "default"),
        ("tie_word_embeddings", 1),
        ("attention_bias", "no"),
        ("bos_token_id", -1),
        ("eos_token_id", "2"),
        ("eos_token_id", [2, True]),
    ],
)
def test_a_value_of_the_wrong_type_is_named(key: str, value: Any):
    with pytest.raises(ModelError, match=rf"^config.json: .*\b{key}\b"):
        facts_from_config({**LLAMA, key: value})


def test_sizes_without_head_dim_must_divide():
    config = {**without(LLAMA, "head_dim"), "hidden_size": 2050}
    with pytest.raises(ModelError, match="hidden_size is not a multiple"):
        facts_from_config(config)


def test_parameters_and_bytes_are_those_of_the_published_model():
    facts = facts_from_config(LLAMA)
    # Source: the model card of Llama-3.2-1B, 1.23 B parameters.
    assert facts.num_parameters == 1_235_814_400
    assert facts.weight_bytes("bfloat16") == 2 * 1_235_814_400
    assert facts.weight_bytes("float32") == 4 * 1_235_814_400
    assert facts.kv_bytes_per_token("float16", padded=False) == 2 * 16 * 8 * 64 * 2
    # Source: the files' headers on the hub.
    assert facts_from_config(QWEN2).num_parameters == 494_032_768
    assert facts_from_config(QWEN3).num_parameters == 596_049_920


def test_padded_heads_are_filled_up_to_sixteen():
    facts = replace(facts_from_config(LLAMA), head_dim=18)
    assert facts.kv_bytes_per_token("bfloat16", padded=False) == 2 * 16 * 8 * 18 * 2
    assert facts.kv_bytes_per_token("bfloat16", padded=True) == 2 * 16 * 8 * 32 * 2


def test_every_type_has_a_size():
    for dtype in BYTES_PER_ELEMENT:
        assert facts_from_config({**LLAMA, "torch_dtype": dtype}).dtype == dtype


def test_reading_facts_imports_no_heavy_package():
    script = f"""
import json, sys
from engine.checkpoints.config_json import facts_from_config
facts_from_config(json.loads({json.dumps(LLAMA)!r}))
print(*{{"torch", "numpy", "transformers", "msgspec"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == ""
