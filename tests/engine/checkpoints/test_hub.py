"""The hub's own client, in a process of its own: it reads its variables when it is imported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys
from engine.checkpoints.hub import hub_directory
from engine.errors import ModelError
try:
    print(hub_directory(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
except ModelError as error:
    print(f"{error}\\nhint: {error.hint}")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An empty cache, and a hub where nobody listens."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    return {**ours, **hub, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[str]:
    """A hub with one repository, `owner/name`, that holds `checkpoint`; its address."""
    handler = type("Handler", (HubHandler,), {"checkpoint": checkpoint})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_json_templates_and_safetensors_are_fetched_and_nothing_else(
    checkpoint: Path, environment: dict[str, str], hub: str
):
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickle")
    (checkpoint / "consolidated.safetensors").write_bytes(b"the same again")
    (checkpoint / "modeling.py").write_text("raise SystemExit")
    (checkpoint / "onnx").mkdir()
    (checkpoint / "onnx" / "config.json").write_text("{}")
    directory = Path(fetch({**environment, "HF_ENDPOINT": hub}, "owner/name"))
    assert directory.name == COMMIT
    assert {file.name for file in directory.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert fetch({**environment, "HF_HUB_OFFLINE": "1"}, "owner/name") == str(directory)
    assert fetch(environment, "owner/name") == str(directory)


def test_an_unsupported_model_is_refused_before_its_weights_are_fetched(
    checkpoint: Path, environment: dict[str, str], hub: str
):
    (checkpoint / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    said = fetch({**environment, "HF_ENDPOINT": hub}, "owner/name")
    assert said.startswith("architecture is not supported: GPT2LMHeadModel")
    assert not list(Path(environment["HF_HOME"]).rglob("*.safetensors"))


def test_an_unknown_repository_is_named(environment: dict[str, str], hub: str):
    said = fetch({**environment, "HF_ENDPOINT": hub}, "owner/other")
    assert said.startswith("model.repo is not on the hub: owner/other")
    assert "HF_TOKEN" in said


def test_an_unknown_revision_is_named(environment: dict[str, str], hub: str):
    said = fetch({**environment, "HF_ENDPOINT": hub}, "owner/name", "v2")
    assert said.startswith("model.revision is not in owner/name: v2\nhint: model.revision=main")


@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no answer", "offline"])
def test_a_hub_that_cannot_be_reached_is_said_so(
    environment: dict[str, str], offline: dict[str, str]
):
    said = fetch({**environment, **offline}, "owner/name")
    assert said.startswith("the Hugging Face hub did not give owner/name: ")
    assert "model=path model.path=DIR" in said


def test_a_malformed_name_is_refused(environment: dict[str, str]):
    said = fetch(environment, "owner/name/more")
    assert said.startswith("model.repo is not on the hub: owner/name/more")


def test_a_cache_without_the_weights_is_refused_offline(
    checkpoint: Path, environment: dict[str, str]
):
    repository = Path(environment["HF_HOME"]) / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(checkpoint, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert fetch(offline, "owner/name") == str(snapshot)
    (snapshot / "model.safetensors").unlink()
    assert fetch(offline, "owner/name").startswith("model.safetensors is missing")


def fetch(environment: dict[str, str], *arguments: str) -> str:
    """What the script prints: the directory, or the error and its hint."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class HubHandler(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as its client asks for."""

    checkpoint: Path

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/models/owner/name/revision/main":
            self._answer_json({"id": "owner/name", "sha": COMMIT, "siblings": []})
        elif path == f"/api/models/owner/name/tree/{COMMIT}":
            self._answer_json([self._entry(file) for file in self._files()])
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            self._answer_file(self.checkpoint / path.split(f"{COMMIT}/")[1])
        else:
            known = path.startswith("/api/models/owner/name/")
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_arguments: object) -> None:
        pass

    def _files(self) -> list[Path]:
        return [file for file in self.checkpoint.rglob("*") if file.is_file()]

    def _entry(self, file: Path) -> dict[str, object]:
        path = str(file.relative_to(self.checkpoint))
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": etag(file)}

    def _answer_json(self, content: object) -> None:
        self._answer(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, file: Path) -> None:
        self._answer(file.read_bytes(), {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT})

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
