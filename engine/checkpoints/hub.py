"""Models of the Hugging Face hub, with its own cache, variables (HF_HOME, ...) and progress."""

from pathlib import Path

from engine.checkpoints.cache import Progress, silent
from engine.checkpoints.directory import check_directory, read_facts
from engine.errors import ModelError

_TEXT_FILES = ["*.json", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
_IGNORED = ["*/*", "consolidated*"]
"""Copies of the same weights in other forms: subdirectories, and Mistral's own format."""


def hub_directory(repo: str, revision: str | None, progress: Progress = silent) -> Path:
    """The directory of a model in the hub's cache, fetched as far as it is not there.

    Only JSON, templates and safetensors are fetched: nothing that could run code.

    Raises:
        ModelError: The model cannot be fetched, is not complete or not supported.
    """
    progress(f"looking for {repo} in the Hugging Face hub and its cache")
    directory = _fetch(repo, revision, _TEXT_FILES)
    read_facts(directory)  # refuse an unsupported model before gigabytes are fetched
    # The directory is named after the commit: weights and texts are of the same one.
    directory = _fetch(repo, directory.name, _TEXT_FILES + _WEIGHTS)
    check_directory(directory)
    return directory


def _fetch(repo: str, revision: str | None, patterns: list[str]) -> Path:
    # Takes half a second, and only this choice needs it.
    import huggingface_hub
    from huggingface_hub import errors

    # Of the HTTP library that this version of the hub's client uses: httpx or httpx2.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    try:
        directory = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=_IGNORED
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"model.repo asks for an access token: {repo}",
            "accept its terms on the hub, then `hf auth login` or HF_TOKEN=...",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"model.repo is not on the hub: {repo}: {_first_line(error)}",
            "model=hub model.repo=owner/name; a private one also needs HF_TOKEN=...",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"model.revision is not in {repo}: {revision}", "model.revision=main"
        ) from error
    except (OSError, ValueError, http_error, errors.XetDownloadError) as error:
        raise ModelError(
            f"the Hugging Face hub did not give {repo}: {_first_line(error)}",
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE;"
            " without a network: model=tiny or model=path model.path=DIR",
        ) from error
    return Path(directory)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
