"""A model's weights as the kernels read them: one mapped file for all ranks of a node."""

import errno
import logging
import os
from pathlib import Path

import torch

from engine.checkpoints.cache import cached_directory, only_ours, remove_stale
from engine.checkpoints.directory import weight_files
from engine.errors import CacheError, ModelError
from engine.model.facts import ModelFacts
from engine.model.kernels.packed_file import (
    Form,
    PackedFile,
    Source,
    is_current,
    matrix_name,
    matrix_size,
    scales_name,
)
from engine.model.kernels.packing import PackedMatrix
from engine.model.loader import Checkpoint
from engine.model.parameters import EMBEDDING, Matrix

logger = logging.getLogger(__name__)

KIND = "packed"
"""The part of the cache that the files are in."""
_FILE = "weights.safetensors"


class PackedWeights:
    """Maps the file; packs the weights if there is none of this checkpoint in this form.

    Attributes:
        remark: What the user should know, or "".

    Raises:
        ModelError: The checkpoint lacks a tensor, or changes while it is packed.
    """

    def __init__(self, directory: Path, facts: ModelFacts, form: Form) -> None:
        self.remark = ""
        self._directory, self._facts, self._form = directory, facts, form
        self._sources = [Source.of(file) for file in weight_files(directory)]
        self._file = PackedFile(facts, form, self._sources)
        try:
            self._tensors = self._from_cache()
        except CacheError as problem:
            logger.warning("weights are packed in memory: %s; %s", problem, problem.hint)
            self._tensors = self._in_memory()
            self.remark = (
                f"weights packed in its own memory, which ranks do not share: {problem};"
                f" hint: {problem.hint}"
            )

    @property
    def has_embedding(self) -> bool:
        """Else its rows are the columns of the head."""
        return EMBEDDING in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def matrix(self, matrix: Matrix) -> PackedMatrix:
        return PackedMatrix(
            self._tensors[matrix_name(matrix)],
            self._tensors.get(scales_name(matrix)),
            *matrix_size(matrix, self._facts),
        )

    def _from_cache(self) -> dict[str, torch.Tensor]:
        directory = cached_directory(self._file.key, self._build, logger.info, kind=KIND)
        file = directory / _FILE
        try:
            fd = os.open(only_ours(file, "weights"), os.O_RDONLY)
            try:
                return self._file.map(fd, str(file))
            finally:
                os.close(fd)
        except OSError as error:
            raise CacheError(
                f"cannot map {file}: {error.strerror}",
                f"remove {directory}: it is made again; or XDG_CACHE_HOME=DIR on another disk",
            ) from error

    def _build(self, new: Path) -> None:
        remove_stale(KIND, lambda directory: is_current(directory / _FILE))
        new.chmod(0o700)
        fd = os.open(new / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)  # see map()
        logger.info("packing %d MiB of weights of %s", self._file.num_bytes >> 20, self._directory)
        self._write(fd)

    def _in_memory(self) -> dict[str, torch.Tensor]:
        name = "packed weights"
        fd = os.memfd_create(name)
        try:
            self._write(os.dup(fd))
            return self._file.map(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.ENOSPC):
                raise
            raise MemoryError(f"{error.strerror}") from error
        finally:
            os.close(fd)

    def _write(self, fd: int) -> None:
        """Writes the file and closes it; it is on the disk before it gets its name."""
        checkpoint = Checkpoint(self._directory, self._form.dtype, torch.device("cpu"))
        with open(fd, "wb") as file:
            self._file.write(file, checkpoint)
            file.flush()
            os.fsync(fd)
        if [Source.of(file) for file in weight_files(self._directory)] != self._sources:
            raise ModelError(
                f"weights were written to while they were read: {self._directory}",
                "start again when they are complete",
            )
