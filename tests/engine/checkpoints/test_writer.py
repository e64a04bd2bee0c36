from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoints.writer import encode, write_weights


def test_bfloat16_is_rounded_as_torch_rounds():
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = np.arange(0x3F800000, 0x3F900000, 0x8000, dtype=np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = np.concatenate(
        [values[np.isfinite(values)], np.array([0, -0.0, np.inf, -np.inf], np.float32)]
    )
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (encode(values, "bfloat16") == expected).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_come_back_as_written(tmp_path: Path, dtype: str):
    matrix = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    tensors = {"turned": encode(matrix.T, dtype), "matrix": encode(matrix, dtype)}
    write_weights(tmp_path, tensors, dtype)
    loaded = load_file(tmp_path / "model.safetensors")
    expected = torch.from_numpy(matrix).to(getattr(torch, dtype))
    assert torch.equal(loaded["matrix"], expected)
    assert torch.equal(loaded["turned"], expected.T)


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_weights(
            tmp_path / "missing", {"x": encode(np.ones(2, np.float32), "float32")}, "float32"
        )
