"""Smoke tests one after the other (`-m action=smoke ...`), each in a launcher of its own."""

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from launcher.smoke.results import (
    Report,
    failed,
    passed_or_failed,
    print_table,
    results_table,
)

_FORMAT = "smoke.format="
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
"""Source: prctl(2), linux/prctl.h."""


class Row(NamedTuple):
    """What became of one smoke test."""

    overrides: Sequence[str]
    passed: bool | None
    """None: it was not run."""
    seconds: float = 0.0
    num_checks: int = 0
    first_failure: str = ""


class SmokeSweep:
    """Several smoke tests: a crash or a refusal of one is a row of the summary, not the end.

    A signal ends the one that runs; those after it are not run.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None
        self._handlers = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}

    def run(self, overrides: Sequence[str]) -> None:
        """Runs the smoke test of a config, unless a signal has come.

        Args:
            overrides: As `python -m launcher` takes them.
        """
        if self._signal is not None:
            self._rows.append(Row(overrides, passed=None, first_failure="not run: interrupted"))
            return
        sys.stderr.write(f"smoke test of {shlex.join(overrides)}\n")
        own = [each for each in overrides if not each.startswith(_FORMAT)]
        began_s = time.monotonic()
        exit_code, answer = self._run_child([*own, f"{_FORMAT}json"])
        self._rows.append(_row(overrides, exit_code, answer, time.monotonic() - began_s))

    def finish(self) -> int:
        """Prints the summary; 0 if all passed, 130 or 143 after a signal, else 1."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        print_table(_summary(self._rows))
        num_passed = sum(row.passed is True for row in self._rows)
        sys.stderr.write(f"{num_passed} of {len(self._rows)} smoke tests passed\n")
        if self._signal is not None:
            return 128 + self._signal
        return 0 if num_passed == len(self._rows) else 1

    def _run_child(self, overrides: Sequence[str]) -> tuple[int, bytes]:
        set_option = ctypes.CDLL(None).prctl
        self._child = subprocess.Popen(
            [sys.executable, "-m", "launcher", *overrides],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # A group of its own: what the terminal sends reaches it through us, once.
            process_group=0,
            # It drains if we are killed.
            preexec_fn=lambda: set_option(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )
        answer, _ = self._child.communicate()
        exit_code, self._child = self._child.returncode, None
        return exit_code, answer

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._child is not None:
            self._child.send_signal(number)


def _row(overrides: Sequence[str], exit_code: int, answer: bytes, seconds: float) -> Row:
    """Prints the table of a test that has told its results."""
    try:
        report = msgspec.json.decode(answer, type=Report)
    except msgspec.DecodeError:
        ended = f"exit code {exit_code}"
        if exit_code < 0:
            ended = f"killed by {signal.Signals(-exit_code).name}"
        why = "refused" if exit_code == 2 else "ended without results"
        return Row(overrides, False, seconds, first_failure=f"{why}, {ended}: see above")
    print_table(results_table(report.name, report.results))
    wrong = failed(report.results)
    first = f"{wrong[0].subject}: {wrong[0].said}" if wrong else ""
    return Row(overrides, exit_code == 0, seconds, len(report.results), first)


def _summary(rows: Sequence[Row]) -> Table:
    table = Table(
        title="smoke tests", title_justify="left", title_style="", box=box.SIMPLE, pad_edge=False
    )
    for heading in ("config", "result"):
        table.add_column(heading, overflow="fold")
    for heading in ("seconds", "checks"):
        table.add_column(heading, justify="right")
    table.add_column("first failure", overflow="fold")
    shared = set.intersection(*(set(row.overrides) for row in rows))
    for row in rows:
        own = [override for override in row.overrides if override not in shared]
        result = Text("not run") if row.passed is None else passed_or_failed(row.passed)
        seconds = f"{row.seconds:.1f}"
        table.add_row(
            shlex.join(own or row.overrides),
            result,
            seconds,
            str(row.num_checks),
            Text(row.first_failure),
        )
    return table
