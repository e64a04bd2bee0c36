"""Reads weights from a Hugging Face directory: safetensors, memory-mapped, one tensor at a time."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from engine.errors import ModelError


class Checkpoint:
    """The tensors of a directory, by name."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._directory = directory
        self._files = {path: safe_open(path, framework="pt") for path in self._paths()}
        self._file_of = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118

    def __call__(self, name: str) -> torch.Tensor:
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

    def _paths(self) -> list[Path]:
        index = self._directory / "model.safetensors.index.json"
        if not index.exists():
            return [self._directory / "model.safetensors"]
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [self._directory / name for name in sorted(names)]
