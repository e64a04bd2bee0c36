"""One file with all weights of a model as the kernels read them, in the safetensors format.

Which tensors it has, and where, follows from the model, the form and the checkpoint's files alone:
a file with another header is not the one.
"""

import hashlib
import json
import math
import mmap
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from engine.errors import CacheError
from engine.model.facts import ModelFacts
from engine.model.kernels.packing import INT8_DEPTH, LAYOUT_VERSION, packed_groups, packed_shape
from engine.model.parameters import EMBEDDING, Matrix, Weights, matrices, vectors
from engine.model.tensor_shapes import tensor_shapes

ALIGNMENT = 4096
"""The header's length is a multiple of it; matrices, which are first, are of cache lines."""
_LENGTH = struct.Struct("<Q")
"""Of the rest of the header, before it."""
_MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit; a damaged file may promise any number."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}


class Form(NamedTuple):
    """How weights are packed."""

    dtype: torch.dtype
    """Of what is not quantised."""
    depth: int
    """See `packed_groups`; of weights that are not quantised."""
    quantized: bool
    """Whether matrices have 8 bits."""


class Source(NamedTuple):
    """A file of the checkpoint. Whatever writes to it, renames or replaces it, changes this."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: Path) -> "Source":
        path = file.resolve()
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Behind the header."""


class PackedFile:
    """What is in the file, and where."""

    def __init__(self, facts: ModelFacts, form: Form, sources: Sequence[Source]) -> None:
        self._facts, self._form = facts, form
        self._places: dict[str, _Place] = {}
        self._header = self._lay_out(sources)
        self.key = hashlib.sha256(self._header).hexdigest()[:32]
        self.num_bytes = len(self._header) + sum(
            math.prod(place.shape) * place.dtype.itemsize for place in self._places.values()
        )

    def write(self, file: BinaryIO, weights: Weights) -> None:
        """Writes all of it.

        Raises:
            ModelError: The checkpoint lacks a tensor.
        """
        file.write(self._header)
        for matrix in matrices(self._facts):
            all_scales = []
            for group, scales in packed_groups(
                weights.matrix(matrix), self._depth, matrix.gated, self._form.quantized
            ):
                file.write(_bytes(group))
                all_scales.append(scales)
            if self._form.quantized:
                file.write(_bytes(torch.cat(all_scales)))
        for name in self._others():
            file.write(_bytes(weights.tensor(name)))

    def map(self, fd: int, name: str) -> dict[str, torch.Tensor]:
        """The tensors of an open file, mapped read-only.

        Args:
            fd: May be closed afterwards.
            name: For messages.

        Raises:
            CacheError: It is not the file.
            OSError: It cannot be mapped.
        """
        size = os.fstat(fd).st_size
        if size != self.num_bytes or os.pread(fd, len(self._header), 0) != self._header:
            raise CacheError(
                f"not the packed weights that its name promises: {name}",
                f"remove {Path(name).parent}: it is made again",
            )
        # Who cuts the file short from here on ends all ranks that read it (SIGBUS): it can be known
        # no earlier than when memory is read. So the file is read-only, its directory the user's.
        memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        memory.madvise(mmap.MADV_WILLNEED)  # what is on the disk is read ahead, not page by page
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return {
                key: torch.frombuffer(
                    memory,
                    dtype=place.dtype,
                    count=math.prod(place.shape),
                    offset=len(self._header) + place.offset,
                ).view(place.shape)
                for key, place in self._places.items()
            }

    @property
    def _depth(self) -> int:
        return INT8_DEPTH if self._form.quantized else self._form.depth

    def _lay_out(self, sources: Sequence[Source]) -> bytes:
        """Places all tensors; the header."""
        made_of = json.dumps({"layout": LAYOUT_VERSION, "sources": sources})
        header: dict[str, Any] = {"__metadata__": {"format": "pt", "made_of": made_of}}
        offset = 0
        for name, (dtype, shape) in self._tensors().items():
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (offset, end)}
            self._places[name] = _Place(dtype, shape, offset)
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-(_LENGTH.size + len(text)) % ALIGNMENT)
        return _LENGTH.pack(len(text)) + text

    def _others(self) -> list[str]:
        """Tensors that are as in the checkpoint. A head of full precision is the embedding too."""
        has_embedding = self._form.quantized or not self._facts.tie_word_embeddings
        return [*vectors(self._facts), *([EMBEDDING] if has_embedding else [])]

    def _tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """In the order of the file."""
        shapes, tensors = tensor_shapes(self._facts), {}
        for matrix in matrices(self._facts):
            columns, in_features = matrix_size(matrix, self._facts)
            shape = packed_shape(columns, in_features, self._depth, matrix.gated)
            dtype = torch.int8 if self._form.quantized else self._form.dtype
            tensors[matrix_name(matrix)] = dtype, shape
            if self._form.quantized:
                scales = (shape[0] * math.prod(shape[2:4]),)
                tensors[scales_name(matrix)] = torch.float32, scales
        for name in self._others():
            tensors[name] = self._form.dtype, shapes[name]
        return tensors


def matrix_name(matrix: Matrix) -> str:
    return f"packed {'+'.join(matrix.modules)}"


def scales_name(matrix: Matrix) -> str:
    return f"scales {'+'.join(matrix.modules)}"


def matrix_size(matrix: Matrix, facts: ModelFacts) -> tuple[int, int]:
    """Columns and in_features."""
    shapes = [tensor_shapes(facts)[name] for name in matrix.weights]
    return sum(columns for columns, _ in shapes), shapes[0][1]


def is_current(file: Path) -> bool:
    """Whether the checkpoint that a packed file was made of is still there, as it was then."""
    try:
        with file.open("rb") as content:
            (length,) = _LENGTH.unpack(content.read(_LENGTH.size))
            header = json.loads(content.read(min(length, _MAX_HEADER_BYTES)))
        made_of = json.loads(header["__metadata__"]["made_of"])
        sources = [Source(*source) for source in made_of["sources"]]
        return made_of["layout"] == LAYOUT_VERSION and all(
            Source.of(Path(source.path)) == source for source in sources
        )
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
