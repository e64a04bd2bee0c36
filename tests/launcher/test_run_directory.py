import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.config import ProcessSpec, Role
from engine.coordinator.abandoned import remove_if_abandoned
from engine.coordinator.process import Coordinator, run
from engine.lifeline import Lifeline
from launcher.errors import Refused
from launcher.run_directory import Holder, RunDirectory, running_names
from tests.engine.settings import dummy_settings


@pytest.fixture(autouse=True)
def runtime(monkeypatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fl") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


@pytest.fixture
def directory() -> Iterator[RunDirectory]:
    made = RunDirectory("one")
    yield made
    made.remove(keep_logs=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_private(directory: RunDirectory):
    directory.acquire()
    for path in (directory.path.parent, directory.path, directory.logs):
        assert mode(path) == 0o700
    assert mode(directory.path / "lock") == 0o600


def test_a_name_can_be_taken_once(directory: RunDirectory):
    directory.acquire()
    with pytest.raises(Refused, match=f"name is in use .*: one .launcher pid {os.getpid()}.") as e:
        RunDirectory("one").acquire()
    assert e.value.hint.startswith("name=one-2")


def test_whoever_looks_whether_it_is_held_does_not_take_the_name_away(
    directory: RunDirectory, monkeypatch
):
    directory.path.mkdir(parents=True, mode=0o700)
    glance = os.open(directory.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(glance, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(glance))  # over when it is tried again
    directory.acquire()
    assert running_names() == ["one"]


def test_who_runs_is_found_until_it_ends(directory: RunDirectory):
    assert Holder.find("one") is None
    assert running_names() == []
    directory.acquire()
    holder = Holder.find("one")
    assert holder is not None
    assert holder.pid == str(os.getpid())
    assert running_names() == ["one"]
    directory.remove(keep_logs=True)
    assert not holder.is_there()
    holder.close()
    assert Holder.find("one") is None
    assert running_names() == []


def test_what_a_killed_deployment_left_is_cleared(directory: RunDirectory):
    directory.path.mkdir(parents=True, mode=0o700)
    (directory.path / "coordinator").touch()
    (directory.path / "logs").mkdir()
    (directory.path / "logs" / "engine-0.log").touch()
    directory.acquire()
    assert sorted(path.name for path in directory.path.rglob("*")) == ["lock", "logs"]


def test_removal_keeps_the_logs_if_told_and_can_be_repeated(directory: RunDirectory):
    directory.acquire()
    (directory.logs / "engine-0.log").write_text("last words")
    directory.remove(keep_logs=True)
    directory.remove(keep_logs=False)
    assert [path.name for path in directory.path.rglob("*")] == ["logs", "engine-0.log"]


def test_nothing_is_left_without_logs(directory: RunDirectory):
    directory.acquire()
    directory.remove(keep_logs=False)
    assert not directory.path.exists()


def test_a_path_too_long_for_sockets_is_refused(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(Refused, match="too long for socket files"):
        RunDirectory("one").acquire()


def test_a_place_of_somebody_else_is_refused(runtime: Path):
    (runtime / "flotilla").symlink_to("/")
    with pytest.raises(Refused, match="belongs to somebody else"):
        RunDirectory("one").acquire()


def test_the_coordinator_leaves_a_directory_alone_whose_launcher_lives(directory: RunDirectory):
    directory.acquire()
    code = (
        "import sys, pathlib; from engine.coordinator.abandoned import remove_if_abandoned; "
        "remove_if_abandoned(pathlib.Path(sys.argv[1]), waits=False)"
    )
    subprocess.run([sys.executable, "-c", code, directory.path], check=True, timeout=30)
    assert directory.path.exists()


def test_the_coordinator_removes_a_directory_that_is_abandoned(directory: RunDirectory):
    directory.acquire()
    assert directory._lock is not None
    os.close(directory._lock)
    directory._lock = None
    remove_if_abandoned(directory.path, waits=False)
    assert not directory.path.exists()
    remove_if_abandoned(directory.path, waits=False)


def test_the_coordinator_waits_for_the_lock_of_a_launcher_that_dies(directory: RunDirectory):
    code = (
        "import sys; from launcher.run_directory import RunDirectory; "
        "RunDirectory('one').acquire(); print('held', flush=True); sys.stdin.read()"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with ThreadPoolExecutor(1) as pool:
            removed = pool.submit(remove_if_abandoned, directory.path, waits=True)
            assert not removed.done()
            holder.kill()
            removed.result(30)
    assert not directory.path.exists()


def test_a_coordinator_that_fails_does_not_wait_for_its_launcher_to_end(
    directory: RunDirectory, monkeypatch
):
    def fail(_coordinator: Coordinator) -> None:
        raise RuntimeError("a defect")

    directory.acquire()
    monkeypatch.setattr(Coordinator, "main_loop", fail)
    lifeline, _launchers_end = os.pipe()  # never closed: that would end this process
    head = ProcessSpec(name="coordinator", role=Role.coordinator, node="head")
    endpoint = f"ipc://{directory.path}/coordinator"
    told = (head, dummy_settings(), endpoint, 1, Lifeline(lifeline), str(directory.path))
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="a defect"):
        pool.submit(run, *told).result(10)
    assert directory.path.exists()
