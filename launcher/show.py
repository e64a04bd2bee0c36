"""A plan for people (a table) and for programs (JSON). The one file that writes to stdout."""

import os
import sys

import msgspec
from rich.console import Console

from launcher.plan import DeploymentPlan, encode
from launcher.plan_table import plan_table

PIPED_WIDTH = 120
"""Columns of a table that no terminal shows."""


def show(text: str) -> None:
    """Writes to stdout; a reader that has seen enough (`| head`) is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # So that the flush at exit does not fail. Source: Python's docs, note on SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_json(plan: DeploymentPlan) -> str:
    """The same plan gives the same text."""
    return msgspec.json.format(encode(plan), indent=2).decode() + "\n"


def as_table(plan: DeploymentPlan) -> str:
    """The plan node by node, in colours if stdout is a terminal."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(plan_table(plan))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
