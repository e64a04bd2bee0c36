"""What the checks of one smoke test have seen, and the table of it."""

import sys
import time
from collections.abc import Callable, Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.wording import counted
from launcher.errors import LauncherError

PIPED_WIDTH = 120
"""Columns of a table that no terminal shows."""


class CheckFailed(LauncherError):
    """Something else was seen than was expected; the message says both."""


class FrontEndGone(CheckFailed):
    """Nobody answers there any more, or the deployment drains: no use in going on."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One check, done."""

    check: str
    passed: bool
    said: str
    """What was seen; of a failed check what was expected too."""
    seconds: float
    front_end: str = ""
    rank: int | None = None

    @property
    def subject(self) -> str:
        """What was checked, and where: `streamed, frontend-0, rank 1`."""
        rank = "" if self.rank is None else f"rank {self.rank}"
        return ", ".join(filter(None, (self.check, self.front_end, rank)))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole smoke test, as `smoke.format=json` prints it."""

    name: str
    """Of the deployment."""
    results: list[Result]


class Recorder:
    """Makes checks one by one and keeps what they saw.

    Attributes:
        results: Of the checks made, in order.
    """

    def __init__(self) -> None:
        self.results: list[Result] = []

    def check(
        self, name: str, look: Callable[[], str], front_end: str = "", rank: int | None = None
    ) -> bool:
        """Makes one check; whether it passed.

        Args:
            look: Says what it has seen, or raises `CheckFailed`.

        Raises:
            FrontEndGone: Noted too.
        """
        began_s = time.monotonic()
        problem: CheckFailed | None = None
        said = ""
        try:
            said = look()
        except CheckFailed as found:
            problem = found
        result = Result(
            check=name,
            passed=problem is None,
            said=str(problem or said),
            seconds=time.monotonic() - began_s,
            front_end=front_end,
            rank=rank,
        )
        self.results.append(result)
        if isinstance(problem, FrontEndGone):
            raise problem
        return problem is None


def failed(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if not result.passed]


def verdict(results: Sequence[Result]) -> str:
    """One line: passed or failed, and what failed first."""
    wrong = failed(results)
    if not results or wrong:
        of = f"{len(wrong)} of {counted(len(results), 'check')} failed"
        first = f"; first {wrong[0].subject}: {wrong[0].said}" if wrong else ""
        return f"smoke test failed: {of}{first}"
    return f"smoke test passed: {counted(len(results), 'check')}"


def results_table(title: str, results: Sequence[Result]) -> Table:
    """A row for each check."""
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE, padding=(0, 2, 0, 0)
    )
    for heading in ("check", "front end", "rank", "result"):
        table.add_column(heading, no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("seen", overflow="fold")
    for result in results:
        rank = "" if result.rank is None else str(result.rank)
        table.add_row(
            *(result.check, result.front_end, rank, passed_or_failed(result.passed)),
            *(f"{result.seconds:.1f}", Text(result.said)),
        )
    return table


def print_table(table: Table) -> None:
    """Writes it to stderr, in colours if that is a terminal."""
    width = None if sys.stderr.isatty() else PIPED_WIDTH
    console = Console(stderr=True, width=width, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    sys.stderr.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def passed_or_failed(passed: bool) -> Text:
    return Text("passed", "green") if passed else Text("FAILED", "bold red")
