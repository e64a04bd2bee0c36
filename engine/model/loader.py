"""Weights as they are in a Hugging Face directory: safetensors files, mapped."""

from pathlib import Path

import torch
from safetensors import safe_open

from engine.checkpoints.directory import weight_files
from engine.errors import ModelError
from engine.model.parameters import Matrix, stacked


class Checkpoint:
    """The tensors of a directory. On a CPU those that need no change are the mapped files' own."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._directory = directory
        self._files = {path: safe_open(path, framework="pt") for path in weight_files(directory)}
        self._file_of = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in the wanted type, on the wanted device.

        Raises:
            ModelError: The checkpoint lacks it.
        """
        file = self._file_of.get(name)
        if file is None:
            raise ModelError(
                f"model directory {self._directory} has no tensor {name}",
                "config.json and the weights belong to different models, or a file is missing",
            )
        return file.get_tensor(name).to(device=self._device, dtype=self._dtype)

    def matrix(self, matrix: Matrix) -> torch.Tensor:
        """[columns, in_features]."""
        return stacked([self.tensor(name) for name in matrix.weights])
