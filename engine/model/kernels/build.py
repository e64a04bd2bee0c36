"""Builds the kernels with the machine's C compiler: once per source, compiler and processor.

A *path* is a set of instructions that the kernels can be compiled for. Libraries are kept in the
cache under a hash of all that decides what is in them.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoints.cache import cached_directory, only_ours
from engine.errors import CacheError, KernelError

logger = logging.getLogger(__name__)

COMPILE_DEADLINE_S = 120
"""Longest run of the compiler; it was seen to take up to three seconds."""
_SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-math-errno")
_LIBRARY = "kernels.so"


class CompilerError(KernelError):
    """The compiler does not compile the kernels with these flags."""


@dataclass(frozen=True, slots=True)
class InstructionPath:
    """Instructions to compile for."""

    name: str
    needs: frozenset[str]
    """Names of the processor's features, as in /proc/cpuinfo."""
    flags: tuple[str, ...]
    """The compiler's."""


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
_AVX512_FLAGS = tuple(f"-m{feature}" for feature in _AVX512)
PATHS = (
    InstructionPath(
        "avx512_bf16",
        frozenset((*_AVX512, "avx512_vnni", "avx512_bf16")),
        ("-mfma", *_AVX512_FLAGS, "-mavx512vnni", "-mavx512bf16"),
    ),
    InstructionPath(
        "avx512_vnni",
        frozenset((*_AVX512, "avx512_vnni")),
        ("-mfma", *_AVX512_FLAGS, "-mavx512vnni"),
    ),
    InstructionPath("avx512", frozenset(_AVX512), ("-mfma", *_AVX512_FLAGS)),
    InstructionPath("avx2", frozenset(("avx2", "fma")), ("-mavx2", "-mfma")),
    InstructionPath("plain", frozenset(), ()),
)
"""Best first; `plain` is what every processor of the compiler's target has (NEON on ARM)."""


def usable_paths() -> list[InstructionPath]:
    """The paths that this processor has the instructions for, best first."""
    features = _cpu_features()
    return [path for path in PATHS if path.needs <= features]


def build(path: InstructionPath, extra_flags: Sequence[str] = ()) -> Path:
    """The library for a path; compiled if it is not in the cache.

    Raises:
        KernelError: There is no compiler, it fails, or the cache cannot be used.
    """
    compiler = _find_compiler()
    flags = [*_FLAGS, *path.flags, *extra_flags]
    sources = sorted(file for file in _SOURCES.iterdir() if file.suffix in (".c", ".h"))
    described = [_version(compiler), platform.machine(), *sorted(path.needs), *flags]
    digest = hashlib.sha256("\0".join(described).encode())
    for file in sources:
        digest.update(b"\0" + file.read_bytes())
    try:
        directory = cached_directory(
            digest.hexdigest()[:32],
            lambda new: _compile(compiler, flags, new / _LIBRARY),
            logger.info,
            kind="kernels",
        )
        return only_ours(directory / _LIBRARY, "kernels")  # what is loaded can do all we can
    except CacheError as error:
        raise KernelError(str(error), error.hint) from error


def _cpu_features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def _find_compiler() -> str:
    for name in ("gcc", "cc"):
        if found := shutil.which(name):
            return found
    raise KernelError(
        "no C compiler: neither gcc nor cc is in PATH",
        "install gcc (on Debian and Ubuntu: apt install gcc libc6-dev)",
    )


@functools.cache
def _version(compiler: str) -> str:
    return f"{os.path.realpath(compiler)} {_run([compiler, '--version']).stdout}"


def _compile(compiler: str, flags: list[str], library: Path) -> None:
    logger.info("building the kernels with %s %s", compiler, " ".join(flags))
    _run([compiler, *flags, "-o", str(library), str(_SOURCES / "kernels.c"), "-lm"])
    library.chmod(0o600)
    library.parent.chmod(0o700)  # whatever the umask: see only_ours()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    name = Path(command[0]).name
    hint = "a newer gcc with its C library's headers (libc6-dev), or engine.kernels=torch"
    try:
        return subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            timeout=COMPILE_DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        raise KernelError(f"{name} takes longer than {COMPILE_DEADLINE_S} s", hint) from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error: " in line), lines[0])
        raise CompilerError(f"{name} cannot build the kernels: {first}", hint) from None
    except OSError as error:
        raise KernelError(f"{name} cannot be run: {error.strerror}", hint) from None
