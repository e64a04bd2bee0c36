"""Half precision: as near to exact logits as transformers is in the same type."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.checkpoints.sources import model_directory
from engine.checkpoints.tiny import write_random_checkpoint
from engine.config import Device, DType, Kernels, ModelKind, ModelOptions
from engine.errors import CapacityError
from engine.model.batch import lay_out
from engine.model.facts import ModelFacts
from engine.model.runner import Chunk
from engine.model.torch_runner import TorchRunner, _enough_memory
from engine.sampling import SamplingParams
from tests.engine.families import FAMILIES, write_model
from tests.engine.settings import make_settings

GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
PROMPT = [(7 * index * index + 3) % 250 for index in range(100)]
NUM_FIRST = 70
"""The rest comes in a second step, which reads the first one's keys and values from the cache."""
NORMED = ["qwen3 with wide heads", "qwen3 with biases and windows in two layers"]
SLACK = 1.5
"""Both round in every operator, but in another order: their errors are of one size, not equal."""


@pytest.fixture(scope="module", params=["tiny", "random", *NORMED])
def directory(request, tmp_path_factory) -> Path:
    if request.param == "tiny":
        return model_directory(ModelOptions(kind=ModelKind.tiny))
    if request.param in NORMED:
        path = tmp_path_factory.mktemp("model")
        write_model(path, FAMILIES[request.param], seed=1)
        return path
    facts = ModelFacts(
        architecture="LlamaForCausalLM",
        vocab_size=320,
        hidden_size=96,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attention_bias=True,
        attention_output_bias=True,
        eos_token_ids=(2,),
    )
    path = tmp_path_factory.mktemp("model")
    write_random_checkpoint(path, facts, seed=1)
    return path


@pytest.fixture(
    params=[
        (DType.bfloat16, Device.cpu, Kernels.native),
        (DType.bfloat16, Device.cpu, Kernels.torch),
        pytest.param((DType.bfloat16, Device.cuda, Kernels.auto), marks=pytest.mark.gpu),
        pytest.param((DType.float16, Device.cuda, Kernels.auto), marks=pytest.mark.gpu),
    ],
    ids=lambda param: "-".join(choice.value for choice in param),
)
def runner(request, directory: Path) -> TorchRunner:
    dtype, device, kernels = request.param
    if device is Device.cuda and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    settings = make_settings(directory, dtype=dtype, device=device, kernels=kernels)
    num_threads = 2 if kernels is Kernels.native else 1  # torch's would wait for each other
    made = TorchRunner(settings, directory, device_id=0, num_threads=num_threads)
    made.prepare_kernels()
    made.load_weights()
    made.allocate_cache()
    made.warm_up()
    return made


@torch.inference_mode()
def reference_logits(directory: Path, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[T, V] of the prompt, computed by transformers in the type; as float32 on the CPU."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    model.eval().to(device)
    return model(torch.tensor([PROMPT], device=device)).logits[0].float().cpu()


@torch.inference_mode()
def our_logits(runner: TorchRunner) -> torch.Tensor:
    """[T, V] of the prompt, computed in two steps; as float32 on the CPU."""
    parts = []
    for start, end in ((0, NUM_FIRST), (NUM_FIRST, len(PROMPT))):
        chunk = Chunk(PROMPT[start:end], start, list(range(1, 9)), None)
        layout = lay_out([chunk], 16, runner._attention.tile_tokens)
        hidden_states = runner._model.hidden_states(
            torch.from_numpy(layout.token_ids).to(runner._device),
            runner._attention.begin_step(layout),
            runner._caches,
            layout.positions.argsort(),
        )
        parts.append(runner._model.logits(hidden_states).float().cpu())
    return torch.cat(parts)


def rms(errors: torch.Tensor) -> float:
    return float(errors.square().mean().sqrt())


def test_logits_are_as_near_to_exact_ones_as_those_of_transformers(runner, directory):
    exact = reference_logits(directory, torch.float32, torch.device("cpu"))
    theirs = reference_logits(directory, runner._dtype, runner._device)
    ours = our_logits(runner)
    assert rms(theirs - exact) > 0, "nothing was rounded"
    assert rms(ours - exact) <= SLACK * rms(theirs - exact)


def test_the_greedy_token_is_the_best_one_where_rounding_cannot_decide(runner, directory):
    exact = reference_logits(directory, torch.float32, torch.device("cpu"))
    theirs = reference_logits(directory, runner._dtype, runner._device)
    margin = 4 * SLACK * rms(theirs - exact)  # the difference of two errors has 1.4 times one's
    best = exact.topk(2)
    clear = [
        length
        for length, (first, second) in enumerate(best.values.tolist(), start=1)
        if first - second > margin
    ]
    assert len(clear) > 10, "few clear tokens"
    for length in clear:
        chunk = Chunk(PROMPT[:length], 0, list(range(1, 9)), GREEDY)
        [token] = runner.execute([chunk]).token_ids
        assert token == best.indices[length - 1, 0]


def test_what_there_is_no_memory_for_is_said():
    with pytest.raises(CapacityError, match="no memory for the weights") as error:  # noqa: SIM117
        with _enough_memory("the weights", "a smaller model"):
            torch.empty(1 << 60, dtype=torch.uint8)
    assert error.value.hint == "a smaller model"
    with pytest.raises(RuntimeError, match="size of tensor"):  # noqa: SIM117
        with _enough_memory("the weights", "a smaller model"):
            torch.ones(2) + torch.ones(3)
