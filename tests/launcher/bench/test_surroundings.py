"""What a benchmark notes beside the answers: processes, the checkout, the server's address."""

import os
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from engine.config import Role
from engine.protocol import Member, Phase, ProcessState
from launcher.bench import resources
from launcher.bench.directory import NotWritten, ResultsDirectory
from launcher.bench.environment import git_commit, read_environment
from launcher.bench.resources import Usage, local_processes, process_tree
from launcher.bench.server import Server
from launcher.errors import Refused
from tests.launcher.sweep import sample_sweeps


def test_memory_and_cpu_of_processes_are_measured():
    usage = Usage({"this": psutil.Process()})
    usage.start()
    sum(range(2_000_000))
    usage.stop()
    (use,) = usage.of(2.0)
    assert (use.name, use.pid) == ("this", os.getpid())
    assert use.cpu_share == use.cpu_s / 2
    assert use.pss_bytes > 2**20


def test_of_a_process_that_ends_meanwhile_remains_what_was_seen_last(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(resources, "_SAMPLE_S", 0.01)
    work = "t = __import__('time')\nwhile t.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", f"input()\n{work}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    usage = Usage(process_tree(child.pid))
    usage.start()
    child.stdin.write(b"\n")
    child.stdin.flush()
    assert child.stdout.readline()
    seen = threading.Event()
    look = usage._look_at_cpus

    def look_and_tell() -> None:
        look()
        seen.set()

    monkeypatch.setattr(usage, "_look_at_cpus", look_and_tell)
    assert seen.wait(30)
    child.communicate(b"\n", timeout=30)
    usage.stop()
    (use,) = usage.of(2.0)
    assert use.cpu_s >= 0.1
    assert use.pss_bytes > 2**20


def test_only_processes_of_this_machine_are_taken():
    member = Member(
        name="engine-0",
        role=Role.engine,
        rank=0,
        incarnation=1,
        node="far-away",
        pid=os.getpid(),  # which happens to exist here, as something else
        devices=[],
        state=ProcessState.ready,
        phase=Phase.ready,
        since_s=0.0,
    )
    assert local_processes([member]) == {}


def test_the_commit_of_a_checkout(tmp_path: Path):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, timeout=30)

    assert git_commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    clean = git_commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / "installed").mkdir()
    assert git_commit(tmp_path / "installed") is None


def test_the_environment_is_known():
    environment = read_environment()
    assert environment.versions["python"].startswith("3.")
    assert environment.cpu
    assert environment.memory_bytes > 2**28


def test_a_benchmark_has_a_directory_of_its_own_that_goes_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    directory = ResultsDirectory.chosen(None, "a-name", datetime(2026, 5, 4, 3, 2, 1))
    assert str(directory.results) == "outputs/bench/2026-05-04_03-02-01-a-name/results.json"
    assert directory.results.parent.is_dir()
    directory.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_when_there_are_results_is_made_again(tmp_path: Path):
    directory = ResultsDirectory(tmp_path / "new" / "results")
    directory.remove()
    assert not (tmp_path / "new").exists()
    directory.write(sample_sweeps.results([]))
    assert directory.results.exists()


def test_results_that_cannot_be_written_are_an_error_that_says_so(tmp_path: Path):
    directory = ResultsDirectory(tmp_path / "results")
    directory.results.with_suffix(".partial").mkdir()
    with pytest.raises(NotWritten, match=r"cannot be written: .*results.json \(Is a dir") as caught:
        directory.write(sample_sweeps.results([]))
    assert caught.value.exit_code == 1
    assert "bench.dir=DIR" in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("https://host/api/v1", "https://host:443/api"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_url_may_end_with_v1(typed: str, url: str):
    assert Server.at(typed).url == url


@pytest.mark.parametrize("typed", ["host:8000", "ftp://host", "http://", "http://h:port"])
def test_what_is_no_url_is_refused(typed: str):
    with pytest.raises(Refused, match=r"bench\.url must be"):
        Server.at(typed)
