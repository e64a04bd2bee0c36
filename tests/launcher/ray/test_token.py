"""Clusters that want a token."""

import socket

import pytest

from tests.running import ask

pytestmark = pytest.mark.ray


def test_a_cluster_that_wants_a_token_says_how_to_give_it(runtime, monkeypatch):
    monkeypatch.setenv("HOME", str(runtime))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        overrides = ("action=plan", "backend=ray", "model=dummy", f"backend.address={address}")
        done = ask(*overrides, runtime_directory=runtime)
    assert done.returncode == 2
    assert done.stderr.startswith(f"the Ray cluster at {address} wants its token, which is missing")
    assert "hint: RAY_AUTH_MODE=token" in done.stderr
