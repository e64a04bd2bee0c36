"""Launches and serves a data-parallel LLM deployment from one declarative config."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.api import Deployment, serve

__all__ = ["Deployment", "serve"]

BEGAN_S = time.monotonic()
"""When the command began, in a process that is one: all that takes long is imported after this."""


def __getattr__(name: str) -> Any:
    """Imports what a caller from Python needs, which no process of a deployment does."""
    if name in __all__:
        from launcher import api

        return getattr(api, name)
    raise AttributeError(f"module 'launcher' has no attribute {name!r}")
