"""Where a model's files come from: one directory in Hugging Face's format for every choice."""

import os
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from engine.checkpoints.cache import Progress, silent
from engine.checkpoints.directory import check_directory, read_facts, weight_files
from engine.checkpoints.hub import hub_directory
from engine.checkpoints.smollm2 import NAME, smollm2_directory
from engine.checkpoints.tiny import tiny_directory
from engine.config import ModelKind, ModelOptions
from engine.errors import ModelError

__all__ = ["default_name", "model_directory", "pinned", "read_facts", "weight_files"]


def model_directory(model: ModelOptions, progress: Progress = silent) -> Path:
    """The directory that holds the model, fetched or made if it is not there yet.

    It has config.json, safetensors files and tokenizer.json; generation_config.json,
    tokenizer_config.json and chat_template.jinja may be missing in a directory of the user's.

    Args:
        model: Which one.
        progress: Told in plain lines what takes time.

    Raises:
        ModelError: The model is missing, damaged or not supported.
    """
    match model.kind:
        case ModelKind.smollm2_135m:
            return smollm2_directory(progress)
        case ModelKind.tiny | ModelKind.dummy:  # the dummy runner needs a tokenizer, no weights
            return tiny_directory(model.seed, progress)
        case ModelKind.path:
            return _local_directory(_path(model))
        case ModelKind.hub:
            return hub_directory(_repo(model), model.revision, progress)
        case _:
            assert_never(model.kind)


def pinned(model: ModelOptions, directory: Path) -> ModelOptions:
    """The model at the commit that was found, whatever is pushed to its branch from now on.

    Args:
        directory: Its `model_directory`.
    """
    if model.kind is not ModelKind.hub:
        return model
    return replace(model, revision=directory.name)  # the hub's cache names it after the commit


def default_name(model: ModelOptions) -> str:
    """The name that clients send as `model` where `model.name` is not set.

    Raises:
        ModelError: The choice lacks its path or repository.
    """
    match model.kind:
        case ModelKind.smollm2_135m:
            return NAME
        case ModelKind.tiny | ModelKind.dummy:
            return model.kind.name
        case ModelKind.path:
            return _path(model).name
        case ModelKind.hub:
            return _repo(model).rsplit("/", 1)[-1]
        case _:
            assert_never(model.kind)


def _local_directory(directory: Path) -> Path:
    hint = "model.path=DIR with config.json, safetensors files and tokenizer.json"
    if not directory.exists():
        raise ModelError(f"model.path does not exist: {directory}", hint)
    if not directory.is_dir():
        raise ModelError(f"model.path is not a directory: {directory}", hint)
    try:
        check_directory(directory)
    except OSError as error:
        raise ModelError(
            f"model.path cannot be read: {error.filename}: {error.strerror}"
        ) from error
    return directory


def _path(model: ModelOptions) -> Path:
    if not model.path:
        raise ModelError(f"model.path is not set: {model.path!r}", "model=path model.path=DIR")
    # Absolute, for processes with another working directory; a link keeps its own name.
    return Path(os.path.abspath(Path(model.path).expanduser()))


def _repo(model: ModelOptions) -> str:
    if not model.repo:
        raise ModelError(
            f"model.repo is not set: {model.repo!r}", "model=hub model.repo=owner/name"
        )
    return model.repo
