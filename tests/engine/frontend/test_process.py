"""The front end as a process of its own, started as the launcher starts it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import msgspec
import pytest

from engine import lifeline
from engine.config import HealthOptions, ProcessSpec, Role
from engine.entrypoint import Launch
from engine.protocol import Phase
from tests.engine.frontend.fake_deployment import DEADLINE_S, FakeDeployment
from tests.engine.settings import make_settings

ROOT = Path(__file__).parents[3]
BODY = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}


class Child:
    """A front-end process, its lifeline and where it listens."""

    def __init__(self, deployment: FakeDeployment, model_directory: Path, log: Path) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            launch = Launch(
                process=ProcessSpec(name="frontend-0", role=Role.frontend, node="head"),
                settings=make_settings(model_directory, health=HealthOptions(stop_s=10.0)),
                coordinator_endpoint=deployment.endpoint,
                incarnation=0,
                listen_fds=(listener.fileno(),),
            )
            reader, self.lifeline = os.pipe()
            with log.open("wb") as stderr:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "engine.entrypoint", str(reader)],
                    cwd=ROOT,
                    stderr=stderr,
                    pass_fds=(reader, listener.fileno()),
                )
            os.close(reader)
        os.write(self.lifeline, lifeline.frame(msgspec.msgpack.encode(launch)))

    def end(self) -> int:
        """Its exit code when its lifeline ends."""
        os.close(self.lifeline)
        self.lifeline = -1
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def child(model_directory: Path, tmp_path: Path) -> Iterator[Child]:
    with FakeDeployment(tmp_path) as deployment:
        child = Child(deployment, model_directory, tmp_path / "log")
        try:
            deployment.wait(lambda seen: Phase.ready in seen.phases)
            yield child
        finally:
            child.process.kill()
            child.process.wait()
            if child.lifeline >= 0:
                os.close(child.lifeline)


def test_it_serves_and_ends_with_its_lifeline(child: Child, tmp_path: Path):
    with httpx2.Client(base_url=child.url, timeout=DEADLINE_S) as http:
        assert http.get("/ready").status_code == 200
        answer = http.post("/v1/chat/completions", json=BODY, headers={"X-Request-Id": "mine"})
        assert answer.json()["choices"][0]["message"]["content"] == "Hello world"
        assert child.end() == 0
    log = (tmp_path / "log").read_text()
    assert "frontend-0" in log
    assert "request mine: " in log
    assert "Traceback" not in log
