"""Weights of 8 bits in a whole model: as near as rounding them lets it be, and always the same."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoints.directory import weight_files
from engine.config import DType, Quantization
from engine.model import parameters
from engine.model.runner import Chunk
from engine.model.torch_runner import TorchRunner
from engine.sampling import SamplingParams
from tests.engine.families import FAMILIES, write_model
from tests.engine.greedy import make_core, one_by_one, run
from tests.engine.settings import make_settings

pytestmark = pytest.mark.timeout(300)

FAMILY = "qwen3 with biases and windows in two layers"
PROMPT = [(7 * index * index + 3) % 250 + 3 for index in range(100)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A model whose matrices hold no more than levels of 8 bits: rounding leaves them alone."""
    path = tmp_path_factory.mktemp("model")
    write_model(path, FAMILIES[FAMILY], seed=1)
    matrices = parameters.matrices(make_settings(path).facts)
    rounded = {name for matrix in matrices for name in matrix.weights}
    for file in weight_files(path):
        tensors = load_file(file)
        for name in rounded & tensors.keys():
            scales = tensors[name].float().abs().amax(dim=1, keepdim=True) / 127
            tensors[name] = (tensors[name].float() / scales).round() * scales
        save_file(tensors, file, metadata={"format": "pt"})
    return path


def logits(directory: Path, **changes) -> torch.Tensor:
    settings = make_settings(directory, **changes)
    runner = TorchRunner(settings, directory, device_id=None, num_threads=2)
    runner.prepare_kernels()
    runner.load_weights()
    runner.allocate_cache()
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    return runner.logits([Chunk(PROMPT, 0, list(range(10)), greedy)])[0]


def test_weights_that_are_levels_already_lose_nothing(directory):
    exact = logits(directory)
    found = logits(directory, quantization=Quantization.int8)
    assert (found - exact).abs().max() < 0.003 * exact.std()


def test_bfloat16_loses_no_more_with_levels_than_without(directory):
    exact = logits(directory)
    plain = logits(directory, dtype=DType.bfloat16)
    found = logits(directory, dtype=DType.bfloat16, quantization=Quantization.int8)
    assert (found - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


def test_others_lose_little(tmp_path):
    write_model(tmp_path, FAMILIES[FAMILY], seed=2)
    exact = logits(tmp_path)
    found = logits(tmp_path, quantization=Quantization.int8)
    assert 0 < (found - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize(
    "changes",
    [{"max_num_seqs": 16}, {"max_num_batched_tokens": 7, "max_num_seqs": 4}],
    ids=["mixed", "chunked"],
)
@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16], ids=["f32", "bf16"])
def test_the_way_requests_are_run_does_not_change_their_tokens(directory, dtype, changes):
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 320) for _ in range(rng.choice((1, 16, 140)))] for _ in range(12)]
    settings = {"dtype": dtype, "quantization": Quantization.int8}
    alone = one_by_one(make_core(make_settings(directory, **settings), directory), prompts, 16)
    core = make_core(make_settings(directory, **settings, **changes), directory)
    assert run(core, prompts, 16) == list(alone)
