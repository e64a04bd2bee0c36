import errno
import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoints import cache as cache_module
from engine.checkpoints.cache import cached_directory, only_ours
from engine.errors import ModelError


def write_model(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "weights").write_bytes(b"12345678")
    (directory / "sub" / "config").write_text("{}")


def never(_directory: Path) -> None:
    raise AssertionError("built again")


def names(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir()}


def test_a_directory_is_built_once(cache: Path):
    first = cached_directory("model-1", write_model)
    assert cached_directory("model-1", never) == first == cache / "model-1"
    assert (first / "sub" / "config").read_text() == "{}"
    assert names(cache) == {"model-1", "model-1.lock"}


def test_a_complete_directory_is_used_while_somebody_holds_the_lock(cache: Path):
    cached_directory("model-1", write_model)
    with (cache / "model-1.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cached_directory("model-1", never) == cache / "model-1"


def test_a_second_caller_waits_and_says_so(cache: Path):
    waiting = threading.Event()
    lines: list[str] = []

    def slow_build(directory: Path) -> None:
        second.start()
        assert waiting.wait(30)
        write_model(directory)

    def on_progress(line: str) -> None:
        lines.append(line)
        waiting.set()

    second = threading.Thread(target=cached_directory, args=("model-1", never, on_progress))
    cached_directory("model-1", slow_build)
    second.join(30)
    assert not second.is_alive()
    assert lines == ["waiting for another process that makes model-1"]


def test_processes_that_start_at_once_build_one_directory(cache: Path, tmp_path: Path):
    builds = tmp_path / "builds"
    script = f"""
from engine.checkpoints.cache import cached_directory
def build(directory):
    (directory / "weights").write_bytes(bytes(1000))
    with open({str(builds)!r}, "a") as file:
        file.write("built\\n")
print(cached_directory("model-1", build))
"""
    processes = [start(script) for _ in range(4)]
    printed = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert printed == [str(cache / "model-1")] * 4
    assert builds.read_text() == "built\n"
    assert names(cache) == {"model-1", "model-1.lock"}


def test_a_killed_build_leaves_no_directory_and_the_next_one_clears_up(cache: Path):
    script = """
import sys
from engine.checkpoints.cache import cached_directory
def build(directory):
    (directory / "weights").write_bytes(b"1234")
    print("building", flush=True)
    sys.stdin.read()
cached_directory("model-1", build)
"""
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.communicate()
    assert not (cache / "model-1").exists()
    assert len(names(cache)) == 2
    cached_directory("model-1", write_model)
    assert names(cache) == {"model-1", "model-1.lock"}


def test_a_failed_build_leaves_nothing_and_the_next_one_may_succeed(cache: Path):
    def fail(directory: Path) -> None:
        write_model(directory)
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        cached_directory("model-1", fail)
    assert names(cache) == {"model-1.lock"}
    cached_directory("model-1", write_model)


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "weights").write_bytes(b"1234"),
        lambda directory: (directory / "sub" / "config").unlink(),
        lambda directory: (directory / "flotilla.json").write_text('{"weig'),
        lambda directory: (directory / "flotilla.json").unlink(),
    ],
    ids=["file cut short", "file missing", "manifest cut short", "manifest missing"],
)
def test_a_damaged_directory_is_made_again(cache: Path, damage: Callable[[Path], object]):
    directory = cached_directory("model-1", write_model)
    damage(directory)
    lines: list[str] = []
    cached_directory("model-1", write_model, lines.append)
    assert (directory / "weights").read_bytes() == b"12345678"
    assert json.loads((directory / "flotilla.json").read_text()) == {"sub/config": 2, "weights": 8}
    assert lines == [f"replacing {directory}: its files are not complete"]
    assert names(cache) == {"model-1", "model-1.lock"}


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=f"{tmp_path}/file/flotilla/models: Not a dir") as error:
        cached_directory("model-1", never)
    assert "XDG_CACHE_HOME=DIR" in error.value.hint


@pytest.mark.usefixtures("cache")
def test_a_full_disk_is_said_so():
    def fill_disk(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match="No space left on device") as error:
        cached_directory("model-1", fill_disk)
    assert error.value.hint.startswith("free some space there")


def test_waiting_for_a_lock_ends_at_the_deadline(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "LOCK_DEADLINE_S", 0)
    cache.mkdir(parents=True)
    with (cache / "model-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="LOCK_DEADLINE_S"):
            cached_directory("model-1", never)


def test_a_relative_cache_home_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = cached_directory("model-1", write_model)
    assert directory == tmp_path / ".cache" / "flotilla" / "models" / "model-1"


def start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_cache_behind_a_link_belongs_to_us_where_it_really_is(cache: Path, tmp_path: Path):
    others = tmp_path / "others"
    (others / "mine").mkdir(parents=True)
    cache.parents[1].symlink_to(others / "mine")
    file = cached_directory("model-1", write_model) / "weights"
    file.parent.chmod(0o700)  # whatever the umask
    file.chmod(0o600)
    assert only_ours(file, "weights") == file
    others.chmod(0o777)
    with pytest.raises(ModelError, match=f"others than this user can write {others},") as error:
        only_ours(file, "weights")
    assert f"chmod go-w {others}" in error.value.hint
