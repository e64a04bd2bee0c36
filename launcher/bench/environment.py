"""Where a benchmark runs: versions, hardware, the commit of the code."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pynvml

from engine import __version__
from launcher.bench.results import Environment
from launcher.this_machine import local_cluster

_PACKAGES = (
    "fastapi",
    "msgspec",
    "numpy",
    "pyzmq",
    "ray",
    "tokenizers",
    "torch",
    "uvicorn",
    "uvloop",
)
_GIT_S = 10.0
_OWN = ("conf", "engine", "launcher")
_CODE = (".py", ".yaml", ".jinja", ".c", ".h")


def read_environment() -> Environment:
    machine = local_cluster().nodes[0]
    return Environment(
        versions={
            "flotilla": __version__,
            "python": platform.python_version(),
            "kernel": platform.release(),
            **{name: metadata.version(name) for name in _PACKAGES if _is_installed(name)},
        },
        cpu=_cpu_name(Path("/proc/cpuinfo")),
        num_cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        gpus=_gpu_names(),
        git_commit=git_commit(Path(__file__).parent),
        code_digest=code_digest(Path(__file__).parents[2]),
    )


def code_digest(directory: Path) -> str:
    """SHA-256 of the files that make up Flotilla, wherever it is installed."""
    digest = hashlib.sha256()
    for package in _OWN:
        for path in sorted((directory / package).rglob("*")):
            if path.suffix in _CODE:
                name, content = str(path.relative_to(directory)), path.read_bytes()
                digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def git_commit(directory: Path) -> str | None:
    """The commit of a checkout, with `-dirty` if tracked files differ from it; None: it is none."""
    commit = _git(directory, "rev-parse", "HEAD")
    # A package may be installed inside somebody else's checkout: then that does not track it.
    if commit is None or not _git(directory, "ls-files", "--", "."):
        return None
    is_dirty = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if is_dirty else commit


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # there is no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _cpu_name(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpu_names() -> list[str]:
    """All of the machine, whether this process may use them or not."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
