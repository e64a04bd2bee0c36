"""What a deployment leaves behind is found."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.smoke import leftovers
from launcher.smoke.leftovers import Leftovers
from launcher.smoke.results import CheckFailed


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(leftovers, "_GONE_S", 0.1)


def noted(directory: Path, *addresses: str, left_behind: Sequence[str] = ()) -> Leftovers:
    left = Leftovers()
    left.note(
        SimpleNamespace(
            private_addresses=[str(directory / "frontend-0.http")],
            addresses=list(addresses),
            left_behind=list(left_behind),
        )
    )
    return left


def test_a_directory_is_found(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/coordinator").touch()
    with pytest.raises(CheckFailed, match=f"seen {tmp_path}/run, {tmp_path}/run/coordinator$"):
        noted(tmp_path / "run").check_gone(logs_stay=False)


def test_the_logs_of_a_failed_deployment_may_stay(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    assert "but for the logs" in noted(tmp_path).check_gone(logs_stay=True)
    with pytest.raises(CheckFailed, match="logs"):
        noted(tmp_path).check_gone(logs_stay=False)


def test_a_process_is_found(tmp_path: Path):
    left = noted(tmp_path / "gone")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with pytest.raises(CheckFailed, match=f"seen process {child.pid}"):
            left.check_gone(logs_stay=False)
        child.communicate(b"\n")
    assert "are gone" in left.check_gone(logs_stay=False)


def test_what_the_executor_could_not_end_is_told(tmp_path: Path):
    left = noted(tmp_path / "gone", left_behind=["placement group engine-0"])
    with pytest.raises(CheckFailed, match="nothing left, seen placement group engine-0"):
        left.check_gone(logs_stay=False)


def test_a_listener_is_found(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CheckFailed, match=f"a listener at {url}"):
            noted(tmp_path / "gone", url).check_gone(logs_stay=False)
