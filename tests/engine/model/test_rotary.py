"""Rotary embeddings against those of transformers, read from the config.json that it writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.checkpoints.directory import read_facts
from engine.model.rotary import rotary_tables
from tests.engine.families import LLAMA3, SIZES, YARN

LENGTH = 512

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": LLAMA3,
    "llama3 of Llama 3.2": {
        **LLAMA3,
        "factor": 32.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "yarn": YARN,
    "yarn of Qwen3": {**YARN, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
    "yarn, attention_factor": {**YARN, "attention_factor": 0.75},
    "yarn, mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
    "yarn, mscale alone": {**YARN, "mscale": 2.0},
    "yarn, factor of 1": {**YARN, "factor": 1.0},
    "yarn, not rounded": {**YARN, "truncate": False},
    "yarn, other borders": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, one border": {**YARN, "beta_fast": 1e-9, "beta_slow": 1e-9},
    "yarn without original length": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head_dim", [18, 64])
@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
def test_cos_and_sin_are_those_of_transformers(
    tmp_path: Path, parameters: dict[str, Any], head_dim: int
):
    config = LlamaConfig(
        **SIZES,
        hidden_size=4 * head_dim,
        rope_parameters=dict(parameters),
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    positions = torch.arange(LENGTH)[None]
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    tables = rotary_tables(read_facts(tmp_path), LENGTH)
    for table, both_halves in zip(tables, expected, strict=True):
        # an angle of 512 is off by 3e-5 where its frequency is off by one rounding
        torch.testing.assert_close(table, both_halves[0, :, : head_dim // 2], atol=1e-4, rtol=0)
