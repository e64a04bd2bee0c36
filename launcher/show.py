"""What is for people (tables) and for programs (JSON). The one file that writes to stdout."""

import os
import sys

import msgspec
from rich.console import Console, RenderableType

from launcher.plan import DeploymentPlan, encode
from launcher.plan_table import plan_table

PIPED_WIDTH = 120
"""Columns of a plan that no terminal shows."""
UNBOUNDED_WIDTH = 10_000
"""Columns of a table whose lines are never broken."""


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
    return rendered(plan_table(plan), PIPED_WIDTH)


def rendered(what: RenderableType, piped_width: int = UNBOUNDED_WIDTH) -> str:
    """As wide as the terminal and in its colours, or plain and at most `piped_width` wide."""
    width = None if sys.stdout.isatty() else piped_width
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(what)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
