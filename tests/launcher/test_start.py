"""Starting: what is refused before anything runs, and a start that is late, fails or is stopped."""

import os
import re
import shutil
import signal
import socket

import pytest

from engine.checkpoints.sources import model_directory
from engine.config import ModelKind, ModelOptions
from tests.running import assert_ended, assert_nothing_left, complete, launched, serving

pytestmark = pytest.mark.timeout(120)


def test_a_taken_port_is_refused_and_its_holder_named(runtime):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with launched(
            "model=dummy", f"frontend.port={port}", runtime_directory=runtime
        ) as launcher:
            assert launcher.end() == 2
    assert f"frontend.port is taken: {port} (by pid {os.getpid()}" in launcher.output
    assert "hint: frontend.port=" in launcher.output
    assert not launcher.directory.exists()


def test_a_name_in_use_is_refused_and_the_running_deployment_is_not_touched(runtime):
    with serving("model=dummy", runtime_directory=runtime) as (first, client):
        with launched("model=dummy", runtime_directory=runtime, name=first.name) as second:
            assert second.end() == 2
        assert f"name is in use by a running deployment: {first.name}" in second.output
        assert f"(launcher pid {first.process.pid})" in second.output
        assert complete(client).status_code == 200


def test_a_name_is_free_again_after_its_launcher_was_killed(runtime):
    with launched("model=dummy", runtime_directory=runtime) as first:
        first.ready()
        children = list(first.children().values())
        for child in children:  # so that nobody tidies up
            child.kill()
        first.process.kill()
        first.process.wait()
        assert first.directory.exists()
        with launched("model=dummy", runtime_directory=runtime, name=first.name) as second:
            second.ready()


def test_a_model_directory_that_is_missing_is_refused_before_anything_starts(runtime):
    with launched("model=path", "model.path=/nowhere/model", runtime_directory=runtime) as launcher:
        assert launcher.end() == 2
    assert "/nowhere/model" in launcher.output
    assert "hint:" in launcher.output
    assert "engine-0" not in launcher.output
    assert not launcher.directory.exists()


def test_a_deployment_that_is_late_says_who_is_late(runtime):
    with launched(
        "model=dummy", "backend.start_deadline_s=0.05", runtime_directory=runtime
    ) as launcher:
        assert launcher.end() == 1
    assert "not ready after 0.05 s (backend.start_deadline_s)" in launcher.output
    assert "frontend-0" in launcher.output


def test_a_start_that_waits_for_the_c_compiler_says_so(runtime, tmp_path, monkeypatch):
    bound, compiler = tmp_path / "waits", tmp_path / "gcc"
    os.mkfifo(bound)
    version, wait = "[ $1 = --version ] && exit 0", f"[ -p {bound} ] && cat {bound}"
    compiler.write_text(f"#!/bin/sh\n{version}\n{wait}\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with launched("model=tiny", runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-0 +preparing kernels")
        with bound.open("w"):
            bound.unlink()  # what it is asked next does not wait
        launcher.ready()


@pytest.mark.parametrize("phase", ["coordinator +ready", "frontend-0 +importing"])
def test_a_signal_while_starting_ends_everything(runtime, phase):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        launcher.wait_for(phase)
        family = launcher.family()
        launcher.signal(signal.SIGINT)
        assert launcher.end(10) == 130
        assert_nothing_left(launcher, family)


def test_a_process_that_ends_while_starting_ends_the_start_and_its_log_is_kept(runtime):
    with launched(
        *("model=tiny", "dp=2", "health.stop_s=1"), runtime_directory=runtime
    ) as launcher:
        launcher.wait_for("frontend-0 +importing")
        launcher.children()["frontend-0"].suspend()  # without it the deployment is never ready
        launcher.wait_for("engine-1 +ready")
        family = launcher.family()
        launcher.children()["engine-1"].kill()
        assert launcher.end() == 1
        assert_ended(family)
    assert "engine-1 ended: killed by SIGKILL" in launcher.output
    assert (launcher.directory / "logs" / "engine-1.log").exists()


def test_a_process_that_fails_while_starting_is_shown_with_its_last_lines(runtime, tmp_path):
    path = shutil.copytree(model_directory(ModelOptions(kind=ModelKind.tiny)), tmp_path / "model")
    with launched("model=path", f"model.path={path}", runtime_directory=runtime) as launcher:
        launcher.wait_for("coordinator +ready")
        (path / "model.safetensors").unlink()  # after the launcher has looked, before the engine
        assert launcher.end() == 1
    assert re.search(r"-0 ended: exit code 1\n    .+", launcher.output)
    assert "model.safetensors" in launcher.output
    assert "hint: see" in launcher.output
