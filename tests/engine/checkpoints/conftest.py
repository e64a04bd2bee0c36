"""What the tests of checkpoints share: an empty cache, a package index of files, small models."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoints.tiny import TINY_FACTS, write_random_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the directory that will hold the models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flotilla" / "models"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all that pip knows of the world."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A complete model directory of the user's."""
    directory = tmp_path / "my-model"
    directory.mkdir()
    write_random_checkpoint(directory, TINY_FACTS)
    return directory


@pytest.fixture
def make_wheel(index: Path) -> Callable[..., Path]:
    """Puts a wheel with one file into the index."""

    def make(package: str, version: str, member: str, content: bytes) -> Path:
        name = package.replace("-", "_")
        wheel = index / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
            )
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        return wheel

    return make
