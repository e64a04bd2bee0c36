"""The built kernels, as Python sees them: the structures and functions of kernels.c."""

import ctypes
import functools
import logging
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any, ClassVar

import torch

from engine.errors import KernelError
from engine.model.kernels.build import CompilerError, InstructionPath, build, usable_paths

logger = logging.getLogger(__name__)

_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class LinearStruct(Structure):
    """`struct linear`."""

    _fields_: ClassVar = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("norm", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("eps", c_float),
        ("gated", c_int32),
        ("float_out", c_int32),
        ("scales", c_void_p),
    ]


class AttentionStruct(Structure):
    """`struct attention`."""

    _fields_: ClassVar = [
        *((name, c_int64) for name in ("num_kv_heads", "group_size", "head_dim", "padded")),
        *((name, c_int64) for name in ("block_size", "scratch_bytes")),
        *((name, c_void_p) for name in ("cos", "sin", "query_norm", "key_norm")),
        ("window", c_int64),
        ("scale", c_float),
        ("eps", c_float),
    ]


class StepStruct(Structure):
    """`struct attention_step`."""

    _fields_: ClassVar = [
        ("num_tokens", c_int64),
        ("num_tiles", c_int64),
        *((name, c_void_p) for name in ("positions", "slots")),
        *((name, c_void_p) for name in ("rows", "lengths", "starts", "tables", "blocks")),
    ]


class DecoderLayerStruct(Structure):
    """`struct decoder_layer`."""

    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("qkv", "out", "gate_up", "down")),
        *((f"multiply_{name}", c_void_p) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention", "attend", "cache")),
        ("is_last", c_int64),
    ]


class DecoderStepStruct(Structure):
    """`struct decoder_step`."""

    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("attention", "x", "qkv", "attended", "gated", "scratch")),
        *((name, c_void_p) for name in ("rows", "hidden")),
        ("num_rows", c_int64),
        ("element_bytes", c_int64),
    ]


class Library:
    """The kernels for one type of element."""

    def __init__(
        self, path: InstructionPath, dtype: torch.dtype, flags: Sequence[str] = ()
    ) -> None:
        library = _open(path, tuple(flags))
        suffix = _SUFFIXES[dtype]
        self.path_name, self.dtype = path.name, dtype
        self.depth = 2 if dtype == torch.bfloat16 else 1
        """Elements of a column that lie side by side in packed weights."""
        self.linear = library[f"linear_{suffix}"]
        self.linear_int8 = library[f"linear_int8_{suffix}"]
        for linear in (self.linear, self.linear_int8):
            linear.argtypes = [c_void_p] * 5 + [c_int64, c_void_p]
            linear.restype = None
        self.gather = library[f"gather_{suffix}"]
        self.gather.argtypes = [c_void_p] * 3 + [c_int64] * 2 + [c_void_p]
        self.gather.restype = None
        self.attention = library[f"attention_{suffix}"]
        self.attention.argtypes = [c_void_p] * 7
        self.attention.restype = None
        self.decode_layers = library["decode_layers"]
        self.decode_layers.argtypes = [c_void_p, c_int64, POINTER(DecoderStepStruct), c_void_p]
        self.decode_layers.restype = None
        self.choose = library["choose"]
        self.choose.argtypes = [c_void_p] * 4 + [c_int64, c_int64, c_void_p]
        self.choose.restype = None
        self.score = library["score"]
        self.score.argtypes = [c_void_p] * 5 + [c_int64] * 3 + [c_void_p]
        self.score.restype = None
        self.attention_thread_bytes = library["attention_thread_bytes"]
        self.attention_thread_bytes.argtypes = [POINTER(AttentionStruct), c_int64]
        self.attention_thread_bytes.restype = c_int64
        self.attention_scratch_bytes = library["attention_scratch_bytes"]
        self.attention_scratch_bytes.argtypes = [POINTER(AttentionStruct), c_int64, c_int64]
        self.attention_scratch_bytes.restype = c_int64
        self.pool_start, self.pool_stop = library["pool_start"], library["pool_stop"]
        self.pool_start.argtypes, self.pool_start.restype = [c_int], c_void_p
        self.pool_stop.argtypes, self.pool_stop.restype = [c_void_p], None


class Team:
    """The threads that share the work of a call, and memory that they write in passing.

    One call at a time. The memory is one piece for all layers, as large as any has needed.

    Raises:
        KernelError: There are not so many threads to be had.
    """

    def __init__(self, library: Library, num_threads: int) -> None:
        self.num_threads = num_threads
        self.pool = library.pool_start(num_threads)
        """Address of the threads' pool."""
        if not self.pool:
            raise KernelError(
                f"cannot start {num_threads} threads", "engine.threads=... with fewer"
            )
        weakref.finalize(self, library.pool_stop, self.pool)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def scratch(self, num_bytes: int) -> int:
        """Where so many bytes are, until the next call."""
        if self._memory.numel() < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory.data_ptr()


def address_of(function: Any) -> int | None:
    """Where a function of a library is, for others of it to call."""
    return ctypes.cast(function, c_void_p).value


def best_library(dtype: torch.dtype) -> Library:
    """The kernels for the best path that this processor has.

    Raises:
        KernelError: They cannot be built or loaded.
    """
    for path in usable_paths():
        try:
            return Library(path, dtype)
        except CompilerError as error:  # an old compiler does not know the newest instructions
            logger.warning("no kernels for %s: %s", path.name, error)
            refused = error
    raise refused


@functools.cache
def _open(path: InstructionPath, flags: tuple[str, ...]) -> ctypes.CDLL:
    file = build(path, flags)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        hint = f"XDG_CACHE_HOME=DIR where programs may be run from, or remove {file.parent}"
        raise KernelError(f"cannot load {file}: {error}", hint) from error
