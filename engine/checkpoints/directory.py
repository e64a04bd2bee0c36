"""What a Hugging Face model directory must hold, and what its files say."""

import json
import struct
from pathlib import Path
from typing import Any

from engine.checkpoints.config_json import facts_from_config
from engine.errors import ModelError
from engine.model.facts import ModelFacts
from engine.model.tensor_shapes import tensor_shapes

_INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FETCH_AGAIN = "fetch the model again (a git clone also needs `git lfs pull`)"


def check_directory(directory: Path) -> None:
    """Looks whether everything is there that serving needs, complete, and of one model.

    Raises:
        ModelError: Something is missing, cut short or of a format that cannot be read, or the
            weights are not those of config.json.
    """
    facts = read_facts(directory)
    headers = [_read_header(file) for file in weight_files(directory)]
    _check_tensors(
        directory, facts, {name: entry for each in headers for name, entry in each.items()}
    )
    if (directory / "tokenizer.json").is_file():
        _read_json(directory / "tokenizer.json")
        return
    if (directory / "tokenizer.model").is_file():
        raise ModelError(
            f"the tokenizer is in SentencePiece format only: {directory / 'tokenizer.model'}",
            f"make tokenizer.json once: python -c 'import transformers as t;"
            f' d="{directory}"; t.AutoTokenizer.from_pretrained(d).save_pretrained(d)\'',
        )
    raise ModelError(f"tokenizer.json is missing: {directory}", _FETCH_AGAIN)


def read_facts(directory: Path) -> ModelFacts:
    """What config.json and generation_config.json say.

    Raises:
        ModelError: A file is missing or damaged, or the model is not supported.
    """
    config = _read_json(directory / "config.json")
    if not (config.get("dtype") or config.get("torch_dtype")):
        config["dtype"] = _stored_dtype(directory)
    generation = directory / "generation_config.json"
    return facts_from_config(config, _read_json(generation) if generation.is_file() else None)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, by name.

    Raises:
        ModelError: There are none, or not all that the index lists.
    """
    index = directory / _INDEX
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{_INDEX} has no weight_map: {index}", _FETCH_AGAIN)
        files = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        files = [directory / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    if index.is_file():
        raise ModelError(
            f"weights that {_INDEX} lists are missing: {', '.join(missing)} in {directory}",
            _FETCH_AGAIN,
        )
    others = sorted(
        file.name for file in directory.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf")
    )
    if others:
        raise ModelError(
            f"weights are not in safetensors format: {', '.join(others)} in {directory}",
            "save it once with transformers: from_pretrained(...).save_pretrained(DIR)",
        )
    raise ModelError(f"model.safetensors is missing: {directory}", _FETCH_AGAIN)


def _check_tensors(directory: Path, facts: ModelFacts, stored: dict[str, Any]) -> None:
    """Raises ModelError unless all tensors are there, in their shapes; others do no harm."""
    hint = "config.json and the weights belong to different models, or a file is missing"
    for name, shape in tensor_shapes(facts).items():
        if name not in stored:
            raise ModelError(
                f"weights do not fit config.json, {name} is missing: {directory}", hint
            )
        if stored[name]["shape"] != list(shape):
            wrong = f"{name} has shape {stored[name]['shape']}, not {list(shape)}"
            raise ModelError(f"weights do not fit config.json, {wrong}: {directory}", hint)
        if stored[name]["dtype"] not in _DTYPES:
            raise ModelError(
                f"weights are quantised or of a type that is not supported, {name} is"
                f" {stored[name]['dtype']}: {directory}",
                f"supported: {', '.join(_DTYPES.values())}",
            )


def _stored_dtype(directory: Path) -> str:
    """The type of the weights, for a config.json that does not name it."""
    if not any((directory / name).is_file() for name in ("model.safetensors", _INDEX)):
        return "float32"
    header = _read_header(weight_files(directory)[0])
    stored = str(next(entry["dtype"] for name, entry in header.items() if name != "__metadata__"))
    return _DTYPES.get(stored, stored)


def _read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: `{name: {dtype, shape, data_offsets}}`.

    Raises:
        ModelError: The file is damaged or shorter than its header says.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > size:
                raise ValueError("no header")
            header: dict[str, Any] = json.loads(content.read(length))
        end = max(
            entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
        )
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"not a safetensors file: {file}", _FETCH_AGAIN) from error
    if size != 8 + length + end:
        raise ModelError(
            f"weights are cut short: {file} has {size} bytes, not {8 + length + end}", _FETCH_AGAIN
        )
    return header


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{file.name} is missing: {file.parent}", _FETCH_AGAIN) from None
    except ValueError as error:
        raise ModelError(f"not valid JSON: {file}: {error}", _FETCH_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelError(f"not a JSON object: {file}", _FETCH_AGAIN)
    return content
