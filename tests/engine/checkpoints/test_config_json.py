import json
import subprocess
import sys
from typing import Any

import pytest

from engine.checkpoints.config_json import facts_from_config
from engine.errors import ModelError
from engine.model.facts import BYTES_PER_ELEMENT, ModelFacts

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
    ("config", "message", "hint"),
    [
        (
            {**LLAMA, "architectures": ["MixtralForCausalLM"]},
            "architecture is not supported: MixtralForCausalLM",
            "supported: LlamaForCausalLM, MistralForCausalLM",
        ),
        (
            {**MISTRAL, "sliding_window": 4096},
            "attention with a sliding window is not supported: sliding_window=4096",
            "take a Mistral without one",
        ),
        (
            {key: value for key, value in MISTRAL.items() if key != "sliding_window"},
            "attention with a sliding window is not supported: sliding_window=4096",
            "take a Mistral without one",
        ),
        (
            {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 32.0}},
            "rope scaling is not supported yet: llama3",
            "supported: rope_type default",
        ),
        (
            {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope scaling is not supported yet: linear",
            "supported: rope_type default",
        ),
        (
            {**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope scaling is not supported yet: yarn",
            "supported: rope_type default",
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


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}
