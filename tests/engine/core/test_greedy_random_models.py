"""Small random models of every family against transformers: windows, norms, biases, rope."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.tiny import write_random_checkpoint
from engine.config import Device, Kernels
from engine.model.facts import ModelFacts
from tests.engine.families import FAMILIES, write_model
from tests.engine.greedy import Reference, Seen, make_core, one_by_one, run
from tests.engine.settings import make_settings

pytestmark = pytest.mark.timeout(300)

VARIANTS: dict[str, dict[str, Any]] = {
    "untied, one query head per key head": {"tied": False, "heads": 4, "kv_heads": 4},
    "tied, three query heads per key head": {"tied": True, "heads": 6, "kv_heads": 2},
    "untied, three query heads per key head": {"tied": False, "heads": 6, "kv_heads": 2},
    "tied, one query head per key head": {"tied": True, "heads": 4, "kv_heads": 4},
    "with biases": {"tied": False, "heads": 4, "kv_heads": 2, "bias": True},
}


@pytest.fixture(
    scope="module", params=[*VARIANTS, *FAMILIES], ids=lambda name: name.replace(" ", "-")
)
def directory(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    if request.param in FAMILIES:
        write_model(path, FAMILIES[request.param], seed=1)
        return path
    variant = VARIANTS[request.param]
    facts = ModelFacts(
        architecture="LlamaForCausalLM",
        vocab_size=320,
        hidden_size=16 * variant["heads"],
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=variant["heads"],
        num_key_value_heads=variant["kv_heads"],
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=variant["tied"],
        attention_bias=variant.get("bias", False),
        attention_output_bias=variant.get("bias", False),
        mlp_bias=variant.get("bias", False),
        eos_token_ids=(2,),
    )
    write_random_checkpoint(path, facts, seed=1)
    return path


@pytest.fixture(
    scope="module", params=["native", "torch", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def computed_by(request) -> dict[str, Any]:
    """Settings: by our kernels or by torch's on the CPU, or by a GPU."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("this machine has no CUDA device")
        return {"device": Device.cuda}
    return {"kernels": Kernels[request.param]}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [
        [rng.randrange(3, 320) for _ in range(rng.choice((1, 5, 16, 33, 140)))] for _ in range(20)
    ]


@pytest.fixture(scope="module")
def alone(directory: Path, prompts, computed_by: dict[str, Any]) -> list[list[int]]:
    reference = Reference(directory)
    core = make_core(make_settings(directory, **computed_by), directory)
    outputs = list(one_by_one(core, prompts, 32))
    for prompt, output in zip(prompts, outputs, strict=True):
        reference.check(prompt, output)
    return outputs


@pytest.mark.parametrize(
    ("changes", "arrivals"),
    [
        ({"max_num_seqs": 16}, [(index * 5) % 30 for index in range(20)]),
        ({"max_num_batched_tokens": 7, "max_num_seqs": 4}, [0] * 20),
        ({"max_model_len": 176, "cache": {"num_blocks": 20}}, [0] * 20),
        ({"cache": {"block_size": 1, "num_blocks": 4000}}, [0] * 20),
        ({"cache": {"prefix_caching": False}}, [0] * 20),
    ],
    ids=["mixed", "chunked", "preempted", "blocks-of-one", "no-prefix-cache"],
)
def test_the_way_requests_are_run_does_not_change_their_tokens(
    directory, prompts, alone, computed_by, changes, arrivals
):
    settings = make_settings(directory, **computed_by, **changes)
    core = make_core(settings, directory)
    reference = Reference(directory)
    first, second = Seen(), Seen()
    outputs = run(core, prompts, 32, arrivals, first)
    outputs += run(core, prompts, 32, seen=second)  # with prefix-cache hits, where there is one
    for prompt, output, expected in zip(prompts * 2, outputs, alone * 2, strict=True):
        if output != expected:
            reference.check(prompt, output)
    if settings.cache.num_blocks == 20:  # too few to keep any prefix until it comes again
        assert core.num_preemptions > 10
    else:
        assert (second.num_cached > 0) == settings.cache.prefix_caching
    if settings.max_num_batched_tokens == 7:
        assert first.num_steps >= sum(map(len, prompts)) / 7
