"""Reads single values of a config.json; what is wrong with one is told by its key."""

from collections.abc import Mapping
from typing import Any

from engine.errors import ModelError

DAMAGED = "take config.json from the model's own repository again"
"""Hint where config.json cannot be what the model's makers wrote."""


def integer(
    config: Mapping[str, Any], key: str, default: int | None = None, minimum: int = 1
) -> int:
    """The integer under a key, or the default.

    Raises:
        ModelError: It is no integer, less than the minimum, or missing without a default.
    """
    value = _present(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ModelError(
            f"config.json: {key} is not an integer of at least {minimum}: {value!r}", DAMAGED
        )
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The number under a key, or the default.

    Raises:
        ModelError: It is no positive number, or missing without a default.
    """
    value = _present(config, key, default)
    # the comparisons are false for NaN
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise ModelError(f"config.json: {key} is not a positive number: {value!r}", DAMAGED)
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """The flag under a key, or the default.

    Raises:
        ModelError: It is neither true nor false.
    """
    value = _present(config, key, default)
    if not isinstance(value, bool):
        raise ModelError(f"config.json: {key} is neither true nor false: {value!r}", DAMAGED)
    return value


def _present(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """As transformers does: null is as good as nothing."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"config.json lacks a key: {key}", DAMAGED)
    return value
