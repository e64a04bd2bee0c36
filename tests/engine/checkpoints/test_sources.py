import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoints.sources import default_name, model_directory, pinned, read_facts
from engine.checkpoints.tiny import TINY_FACTS
from engine.config import ModelKind, ModelOptions
from engine.errors import ModelError


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ModelOptions(), "SmolLM2-135M-Instruct"),
        (ModelOptions(kind=ModelKind.tiny), "tiny"),
        (ModelOptions(kind=ModelKind.dummy), "dummy"),
        (ModelOptions(kind=ModelKind.path, path="/models/Llama-3/"), "Llama-3"),
        (ModelOptions(kind=ModelKind.hub, repo="owner/Some-Model"), "Some-Model"),
    ],
)
def test_a_model_is_served_under_the_name_of_its_choice(model: ModelOptions, name: str):
    assert default_name(model) == name


@pytest.mark.usefixtures("cache")
def test_dummy_has_the_tokenizer_and_config_of_tiny():
    tiny = model_directory(ModelOptions(kind=ModelKind.tiny, seed=3))
    assert model_directory(ModelOptions(kind=ModelKind.dummy, seed=3)) == tiny
    assert read_facts(tiny) == TINY_FACTS


def test_a_directory_of_the_user_is_taken_as_it_is(checkpoint: Path):
    assert model_directory(ModelOptions(kind=ModelKind.path, path=str(checkpoint))) == checkpoint


def test_a_relative_path_becomes_absolute(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(checkpoint.parent)
    model = ModelOptions(kind=ModelKind.path, path=checkpoint.name)
    assert model_directory(model) == checkpoint
    monkeypatch.chdir(checkpoint)
    assert default_name(ModelOptions(kind=ModelKind.path, path=".")) == "my-model"


def test_the_home_directory_may_be_a_tilde(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert model_directory(ModelOptions(kind=ModelKind.path, path="~/my-model")) == checkpoint


def test_a_missing_directory_is_named(tmp_path: Path):
    path = tmp_path / "nowhere"
    with pytest.raises(ModelError, match=f"^model.path does not exist: {path}$") as error:
        model_directory(ModelOptions(kind=ModelKind.path, path=str(path)))
    assert error.value.hint.startswith("model.path=DIR")


def test_a_file_is_not_a_directory(checkpoint: Path):
    path = checkpoint / "model.safetensors"
    with pytest.raises(ModelError, match=f"^model.path is not a directory: {path}$"):
        model_directory(ModelOptions(kind=ModelKind.path, path=str(path)))


def test_an_unsupported_model_is_refused_at_once(checkpoint: Path):
    (checkpoint / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelError, match="architecture is not supported: GPT2LMHeadModel"):
        model_directory(ModelOptions(kind=ModelKind.path, path=str(checkpoint)))


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        (ModelKind.path, "model.path is not set: None", "model=path model.path=DIR"),
        (ModelKind.hub, "model.repo is not set: None", "model=hub model.repo=owner/name"),
    ],
)
def test_a_choice_without_its_key_is_refused(kind: ModelKind, message: str, hint: str):
    for function in (model_directory, default_name):
        with pytest.raises(ModelError, match=f"^{message}$") as error:
            function(ModelOptions(kind=kind))
        assert error.value.hint == hint


@pytest.mark.usefixtures("cache")
def test_a_model_in_the_cache_imports_nothing_heavy():
    model_directory(ModelOptions(kind=ModelKind.tiny))
    script = """
import sys
from dataclasses import replace
from engine.checkpoints.sources import model_directory, read_facts
from engine.config import ModelKind, ModelOptions
read_facts(model_directory(ModelOptions(kind=ModelKind.tiny), print))
print(*{"gguf", "huggingface_hub", "numpy", "tokenizers", "safetensors"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == ""


def test_a_model_of_the_hub_is_pinned_to_the_commit_that_was_found():
    model = ModelOptions(kind=ModelKind.hub, repo="a/b", revision="main")
    assert pinned(model, Path("cache/snapshots/0123abc")) == replace(model, revision="0123abc")
    other = ModelOptions(kind=ModelKind.path, path="x")
    assert pinned(other, Path("x")) == other
