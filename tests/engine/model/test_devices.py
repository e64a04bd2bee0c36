"""What would fail on a GPU, found without one: operators whose tensors are on several devices.

The model's tensors are on torch's `meta` device, which has shapes but no numbers. Whatever our code
leaves on the CPU by mistake meets them in some operator.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import DType, Kernels
from engine.model.choice import CHOICE
from engine.model.runner import Chunk
from engine.model.torch_runner import TorchRunner
from engine.model.torch_sampler import TorchSampler
from engine.sampling import SamplingParams
from tests.engine.families import FAMILIES, write_model
from tests.engine.settings import make_settings

META = torch.device("meta")
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
CHUNKS = [
    Chunk([5] * 40, 0, [0, 1, 2], GREEDY),
    Chunk([6, 7], 20, [3, 4], None),
    Chunk([8], 50, [5, 6, 7, 8], GREEDY),
    Chunk([9], 3, [9], GREEDY),
]


class OneDevice(TorchDispatchMode):
    """Fails where an operator that is not a copy takes tensors of two devices.

    As on a GPU: single numbers of the CPU may meet everything.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim() > 0}
        if func not in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            assert len(devices) <= 1, f"{func} of {devices}"
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=FAMILIES)
def runner(request, tmp_path: Path) -> TorchRunner:
    write_model(tmp_path, FAMILIES[request.param], seed=1)
    settings = make_settings(tmp_path, dtype=DType.bfloat16, kernels=Kernels.torch)
    made = TorchRunner(settings, tmp_path, device_id=None, num_threads=1)
    made._device = META
    made.prepare_kernels()
    made.load_weights()
    made.allocate_cache()
    return made


@torch.inference_mode()
def test_a_step_and_its_choices_are_computed_on_one_device(runner):
    choices = np.array([(0.3, 1.0, 0.1, 0.9, 3), (0.3, 0.7, 0.0, 1.0, 0), (0, 0, 0, 1, 0)], CHOICE)
    sampler = TorchSampler()
    with OneDevice():
        logits = runner.logits(CHUNKS)
        tokens = sampler.choose(logits, choices)
        scores = sampler.score(logits, tokens, 5)
    assert logits.shape == (3, runner._settings.facts.vocab_size)
    assert {logits.device, tokens.device, scores.own.device, scores.top.device} == {META}


@torch.inference_mode()
def test_two_devices_in_one_operator_are_found(runner):
    runner._device = torch.device("cpu")  # of token ids, while the weights are on META
    with OneDevice(), pytest.raises(AssertionError, match="embedding"):
        runner.logits(CHUNKS)
